// What the link says is text for the form: nothing is sent before somebody says so.
const form = document.querySelector("form");
const status = document.querySelector("[role=status]");
form.matchers.value = new URLSearchParams(location.search).getAll("matcher").join("\n");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const starts = new Date();
  const silence = {
    id: crypto.randomUUID ? crypto.randomUUID() : String(starts.getTime()),
    matchers: form.matchers.value.split("\n").map((line) => line.trim()).filter(Boolean),
    starts: starts.toISOString(),
    ends: new Date(starts.getTime() + form.hours.value * 3600 * 1000).toISOString(),
    author: form.author.value,
    comment: form.comment.value,
  };
  const headers = { "content-type": "application/json" };
  if (form.token.value) headers.authorization = "Bearer " + form.token.value;
  const answer = await fetch("../api/v1/silences", { method: "POST", headers, body: JSON.stringify({ add: silence }) });
  status.textContent = answer.ok ? "Silenced until " + silence.ends : "Refused: " + (await answer.text());
});
