// Signs files as GitHub does, by GitHub's own library.
//   sign.mjs SECRET FILE…    prints {"FILE": "sha256=…", …}
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const modules = process.env.HOOKLATCH_NODE_MODULES;
const { sign } = await import(pathToFileURL(`${modules}/@octokit/webhooks-methods/dist-node/index.js`));

const [secret, ...files] = process.argv.slice(2);
const signatures = {};
for (const file of files) signatures[file] = await sign(secret, await readFile(file, "utf8"));
console.log(JSON.stringify(signatures));
