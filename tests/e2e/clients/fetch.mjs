// Calls a gateway with Node's fetch, and prints a line for each kind of call that went as it should:
//
//     node fetch.mjs http://127.0.0.1:8000/v1 KEY

const [base, key] = process.argv.slice(2);
const messages = (text) => [{ role: "user", content: text }];

function call(path, body, bearer = key) {
  const headers = { authorization: `Bearer ${bearer}`, "content-type": "application/json" };
  return fetch(base + path, { method: "POST", headers, body: typeof body === "string" ? body : JSON.stringify(body), duplex: "half" });
}

function check(holds, what) {
  if (!holds) throw new Error(String(what).slice(0, 500));
}

for (let number = 0; number < 100; number++) {
  const answer = await call("/chat/completions", { messages: messages(`call ${number}`) });
  const text = await answer.text();
  check(answer.status === 200 && text.includes(`call ${number}`), text);
}
console.log("100 calls one after another");

const answers = await Promise.all([...Array(100).keys()].map((number) => call("/responses", { input: `at once ${number}` })));
for (const [number, answer] of answers.entries()) {
  const text = await answer.text();
  check(answer.status === 200 && text.includes(`at once ${number}`), text);
}
console.log("100 calls at once");

for (const [path, body, last] of [
  ["/chat/completions", { messages: messages("in a stream"), stream: true }, "[DONE]"],
  ["/responses", { input: "in a stream", stream: true }, "response.completed"],
]) {
  let all = "";
  let pieces = 0;
  const answer = await call(path, body);
  for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
    all += piece;
    pieces += 1;
  }
  check(answer.status === 200 && all.includes(last) && pieces > 0, all);
}
console.log("streams of both APIs");

const aborted = new AbortController();
const left = await fetch(`${base}/responses`, {
  method: "POST",
  headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
  body: JSON.stringify({ input: "left", stream: true, metadata: { sim_event_gap_ms: "1000" } }),
  signal: aborted.signal,
});
aborted.abort();
check(left.status === 200, left.status);
console.log("a stream that is left");

for (const size of [10, 4_000_000]) {
  const refused = await call("/responses", { input: "x".repeat(size) }, "wrong");
  const text = await refused.text();
  check(refused.status === 401 && text.includes("invalid_api_key"), text);
}
console.log("a wrong key, with a small body and a large one");
