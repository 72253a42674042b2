// Judges a body from standard input as GitHub's own library does.
//   verify.mjs SECRET SIGNATURE    prints true or false
import { pathToFileURL } from "node:url";

const modules = process.env.HOOKLATCH_NODE_MODULES;
const { verify } = await import(pathToFileURL(`${modules}/@octokit/webhooks-methods/dist-node/index.js`));

const [secret, signature] = process.argv.slice(2);
const pieces = [];
for await (const piece of process.stdin) pieces.push(piece);
console.log(await verify(secret, Buffer.concat(pieces).toString("utf8"), signature));
