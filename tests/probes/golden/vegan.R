# Golden values for test_mantel.py, from closed-form points and permutations that Python repeats.
# Run: Rscript tests/probes/golden/vegan.R > tests/probes/golden/vegan.csv
# Written with R 4.2.2 and vegan 2.6-4 (Debian 12: r-base-core, r-cran-vegan).
suppressPackageStartupMessages(library(vegan))
n <- 12
m <- 199
points <- function(a) cbind(sin(a * (1:n)), cos(a * a * (1:n)), sin(3 * a + (1:n)^2))
x <- dist(points(0.7)); y <- dist(points(0.7) + 3 * points(1.9)); z <- dist(points(2.3) + 0.5 * points(0.7))
permutations <- t(sapply(1:m, function(k) order(sin((1:n) * k * 0.7391))))
cat("test,method,statistic,pvalue\n")
for (method in c("pearson", "spearman")) {
  plain <- mantel(x, y, method = method, permutations = permutations)
  cat(sprintf("mantel,%s,%.15g,%.15g\n", method, plain$statistic, plain$signif))
  part <- mantel.partial(x, y, z, method = method, permutations = permutations)
  cat(sprintf("partial,%s,%.15g,%.15g\n", method, part$statistic, part$signif))
}
