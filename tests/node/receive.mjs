// Verifies requests as receivers do, by the providers' own libraries.
//   JSON on standard input: [{provider, method, url, headers: {lower-case name: value}, body: base64, secret, now}, …]; `now` in Unix seconds
//   prints {"PROVIDER": true | "why not", …}
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const modules = process.env.HOOKLATCH_NODE_MODULES + "/";
const require = createRequire(modules);
const load = (path) => import(pathToFileURL(modules + path));

// Each resolves to what the library says; one that throws has refused.
const verifiers = {
  async github({ secret, headers, text }) {
    const { verify } = await load("@octokit/webhooks-methods/dist-node/index.js");
    return verify(secret, text, headers["x-hub-signature-256"]);
  },
  async hygraph({ secret, headers, text }) {
    const { verifyWebhookSignature } = require("@hygraph/utils");
    return verifyWebhookSignature({ rawPayload: text, signature: headers["gcms-signature"], secret });
  },
  async "kontent-ai"({ secret, headers, text }) {
    const { signatureHelper } = require("@kontent-ai/webhook-helper");
    return signatureHelper.isValidSignatureFromString(text, secret, headers["x-kontent-ai-signature"]);
  },
  async line({ secret, headers, raw }) {
    const { validateSignature } = require("@line/bot-sdk");
    return validateSignature(raw, secret, headers["x-line-signature"]);
  },
  async paddle({ secret, headers, text }) {
    const { Paddle } = require("@paddle/paddle-node-sdk");
    return new Paddle("key").webhooks.isSignatureValid(text, secret, headers["paddle-signature"]);
  },
  async sanity({ secret, headers, text }) {
    const { isValidRequest } = await load("@sanity/webhook/dist/index.mjs");
    return isValidRequest({ headers, body: text }, secret);
  },
  async shopify({ secret, headers, text, method, url }) {
    require("@shopify/shopify-api/adapters/node");
    const { shopifyApi, LATEST_API_VERSION, ApiVersion, LogSeverity } = require("@shopify/shopify-api");
    const apiVersion = LATEST_API_VERSION ?? Object.values(ApiVersion).at(-1);
    const api = shopifyApi({ apiKey: "key", apiSecretKey: secret, hostName: "hooks.example.com", apiVersion, isEmbeddedApp: false, logger: { level: LogSeverity.Error } });
    const verdict = await api.webhooks.validate({ rawBody: text, rawRequest: { method, url, headers }, rawResponse: {} });
    if (!verdict.valid) throw new Error(verdict.reason);
    return true;
  },
  async discord({ secret, headers, raw }) {
    const { verifyKey } = require("discord-interactions");
    return verifyKey(raw, headers["x-signature-ed25519"], headers["x-signature-timestamp"], secret);
  },
  async standardwebhooks({ secret, headers, text }) {
    const { Webhook } = require("standardwebhooks");
    new Webhook(secret).verify(text, headers);
    return true;
  },
  async svix({ secret, headers, text }) {
    const { Webhook } = require("svix");
    new Webhook(secret).verify(text, headers);
    return true;
  },
};

// The time that the libraries see: one of them allows no more than five seconds.
let now = 0;
const RealDate = Date;
globalThis.Date = class extends RealDate {
  constructor(...rest) {
    if (rest.length) super(...rest);
    else super(now);
  }
  static now() {
    return now;
  }
};

let input = "";
for await (const piece of process.stdin) input += piece;
const verdicts = {};
for (const request of JSON.parse(input)) {
  const raw = Buffer.from(request.body, "base64");
  now = request.now * 1000;
  try {
    verdicts[request.provider] = await verifiers[request.provider]({ ...request, raw, text: raw.toString("utf8") });
  } catch (error) {
    verdicts[request.provider] = String(error?.stack ?? error);
  }
}
console.log(JSON.stringify(verdicts));
