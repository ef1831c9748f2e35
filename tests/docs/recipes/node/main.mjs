// Calls until standard input ends, one call after the other, and prints how many failed. It uses connect.mjs of the page.
import { randomUUID } from "node:crypto";
import { call, connect } from "./connect.mjs";

const { therapists } = connect("dns:///caseload.example.org:50051", "ca.pem", process.env.CASELOAD_KEY);
let ended = false;
process.stdin.on("end", () => (ended = true)).resume();
let calls = 0;
let failed = 0;

// A create is not retried, so only waiting lets it succeed before the server starts.
async function create() {
  await call(therapists, "CreateTherapist", { therapist: { display_name: "Ada Roe" }, request_id: randomUUID() });
}

async function once() {
  await call(therapists, "ListTherapists", {});
  await call(therapists, "DeleteTherapist", { therapist_id: "nobody", allow_missing: true, request_id: randomUUID() });
}

async function tried(calling) {
  try {
    await calling();
  } catch (error) {
    failed += 1;
    console.error(error.message);
  }
}

console.log("starting");
await tried(create);
while (!ended) {
  calls += 1;
  await tried(once);
  if (calls % 20 === 0) console.log("calling");
}
console.log(`${failed} of ${calls} failed`);
process.exit();
