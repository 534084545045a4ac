// Continuations side by side: one prompt and sample of all models. Their text reaches the page as text only.

async function startContinuations(names) {
  const reader = document.getElementById("continuations-reader");
  if (!reader) return;
  const places = { prompt: reader.querySelector(".prompt"), sample: reader.querySelector(".sample"), texts: reader.querySelector(".texts") };
  if (!document.getElementById("csv-continuations.jsonl")) {
    places.texts.textContent = "Too large to be carried by this page: continuations.jsonl lies beside it.";
    reader.querySelector(".variants").hidden = true;
    return;
  }
  const lines = (await unpackText("csv-continuations.jsonl")).split("\n").filter((line) => line);
  const records = lines.map((line) => JSON.parse(line));
  const short = new Map(Object.entries(names).map(([own, full]) => [full, own]));
  const order = [...new Set([...Object.values(names), ...records.map((record) => String(record.model))])];
  const prompts = [...new Set(records.map((record) => String(record.prompt)))];
  const several = new Set(records.map((record) => record.seed)).size > 1;
  const samples = [...new Set(records.map((record) => JSON.stringify([record.seed, record.sample])))];
  fillChoices(places.prompt, prompts.map((prompt) => shorten(visibleText(prompt))));
  fillChoices(places.sample, samples.map((key) => {
    const [seed, sample] = JSON.parse(key);
    return several ? `${Number(sample) + 1}, seed ${seed}` : `${Number(sample) + 1}`;
  }));
  const show = () => {
    const prompt = prompts[places.prompt.selectedIndex];
    const key = samples[places.sample.selectedIndex];
    const own = records.filter((record) => String(record.prompt) === prompt && JSON.stringify([record.seed, record.sample]) === key);
    const cards = order.flatMap((model) => own.filter((record) => String(record.model) === model).slice(0, 1));
    places.texts.replaceChildren(...cards.map((record) => cardOf(record, short.get(String(record.model)) ?? String(record.model))));
  };
  places.prompt.addEventListener("change", show);
  places.sample.addEventListener("change", show);
  show();
}

function fillChoices(select, texts) {
  select.replaceChildren(...texts.map((text) => new Option(text)));
  select.selectedIndex = 0;
}

const shorten = (text) => (text.length > 80 ? `${text.slice(0, 79)}…` : text);

// Line ends stay; what cannot be seen otherwise is named.
const visibleText = (text) =>
  [...text].map((character) => (character !== "\n" && INVISIBLE.test(character) ? nameCharacter(character) : character)).join("");

function cardOf(record, name) {
  const card = document.createElement("article");
  const title = document.createElement("h3");
  title.textContent = name;
  const text = document.createElement("p");
  const prompt = document.createElement("span");
  prompt.className = "given";
  prompt.textContent = visibleText(String(record.prompt));
  const more = document.createElement("span");
  more.textContent = visibleText(String(record.text));
  const end = document.createElement("span");
  end.className = "given";
  end.textContent = record.is_ended ? " ∎" : " …";
  end.title = record.is_ended ? "the model ended the text" : "cut off here";
  text.append(prompt, more, end);
  card.append(title, text);
  return card;
}
