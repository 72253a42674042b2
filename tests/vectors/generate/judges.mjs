// The Node libraries' verdicts: a JSON line in, a JSON line out.
//   {judge, method, url, headers: {lower-case name: value}, body: base64, secrets: […], params, public_key, now}
//   {ok} or {error}
// Run with --import ./imports.mjs, which gives one of the libraries the configuration that it wants from its framework.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const home = process.env.CASE_TOOLS + "/node/";
const require = createRequire(home);
const load = (path) => import(pathToFileURL(home + "node_modules/" + path));

// The time that the libraries see.
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
console.warn = console.error = console.debug = () => {};

const text = (call) => call.raw.toString("utf8");

// Calls that throw where the signature is bad.
const throws = (run) => async (call) => {
  await run(call);
  return true;
};

const nuxt = (file, name, config) => async (call) => {
  const validators = "nuxt-webhook-validators/dist/runtime/server/lib/validators/";
  const module = await load(validators + file);
  globalThis.caseConfig = { webhook: config(call) };
  const req = { method: call.method, url: call.url, headers: call.headers, connection: {}, socket: {} };
  return module[name]({ method: call.method, headers: new Headers(call.headers), _requestBody: text(call), node: { req: { ...req, rawBody: text(call) } }, context: {} });
};

const tern = (platform, tolerance) => async (call) => {
  const { WebhookVerificationService } = require("@hookflo/tern");
  const request = new Request(call.url, { method: call.method, headers: call.headers, body: text(call) });
  return (await WebhookVerificationService.verifyWithPlatformConfig(request, platform, call.secret, tolerance)).isValid;
};

const judges = {
  "adyen": ({ secret, headers, ...call }) => new (require("@adyen/api-library").hmacValidator)().validateHMACSignature(secret, headers["hmacsignature"], text(call)),
  "box": async (call) => {
    const { WebhooksManager } = require("box-node-sdk/lib/managers/webhooks");
    return WebhooksManager.validateMessage(text(call), call.headers, call.secrets[0], { secondaryKey: call.secrets[1] });
  },
  "clerk": throws((call) => require("@clerk/backend/webhooks").verifyWebhook(new Request(call.url, { method: call.method, headers: call.headers, body: text(call) }), { signingSecret: call.secret })),
  "cloudinary": ({ secret, headers, params, ...call }) => {
    const cloudinary = require("cloudinary").v2;
    cloudinary.config({ cloud_name: "c", api_key: "k", api_secret: secret, signature_algorithm: params.algorithm ?? "sha1" });
    return cloudinary.utils.verifyNotificationSignature(text(call), headers["x-cld-timestamp"], headers["x-cld-signature"]);
  },
  "elevenlabs": throws(async ({ secret, headers, ...call }) => {
    const { WebhooksClient } = require("@elevenlabs/elevenlabs-js/wrapper/webhooks.js");
    await WebhooksClient.prototype.constructEvent.call({}, text(call), headers["elevenlabs-signature"], secret);
  }),
  "fourthwall": nuxt("fourthwall.js", "isValidFourthwallWebhook", ({ secret }) => ({ fourthwall: { secretKey: secret } })),
  "brevo": (call) => nuxt("brevo.js", "isValidBrevoWebhook", ({ secret }) => ({ brevo: { token: secret } }))({ ...call, headers: { ...call.headers, "x-forwarded-for": "1.179.112.1" } }),
  "kick": nuxt("kick.js", "isValidKickWebhook", ({ public_key }) => ({ kick: { publicKey: public_key } })),
  "kinde": async (call) => {
    globalThis.fetch = async () => new Response(JSON.stringify(call.params.jwks), { headers: { "content-type": "application/json" } });
    return (await require("@kinde/webhooks").decodeWebhook(text(call), "https://example.kinde.com")) !== null;
  },
  "kontent": ({ secret, headers, ...call }) => require("@kontent-ai/webhook-helper").signatureHelper.isValidSignatureFromString(text(call), secret, headers["x-kontent-ai-signature"]),
  "lithic": throws(async ({ secret, headers, ...call }) => {
    const { Webhooks } = await load("lithic/resources/webhooks.mjs");
    new Webhooks({}).verifySignature(text(call), headers, secret);
  }),
  "livekit": throws(async ({ secret, headers, params, ...call }) => {
    const { WebhookReceiver } = await load("livekit-server-sdk/dist/index.js");
    await new WebhookReceiver(params.api_key, secret).receive(text(call), headers["authorization"]);
  }),
  "modern-treasury": async ({ secret, headers, ...call }) => {
    const { Webhooks } = await load("modern-treasury/resources/webhooks.mjs");
    return new Webhooks({}).validateSignature(text(call), headers, { key: secret });
  },
  "mux": throws(async ({ secret, headers, ...call }) => {
    const { Webhooks } = await load("@mux/mux-node/resources/webhooks/webhooks.mjs");
    await new Webhooks({}).verifySignature(text(call), headers, secret);
  }),
  "onfido": throws(({ secret, headers, ...call }) => {
    const { WebhookEventVerifier } = require("@onfido/api/dist/webhook-event-verifier.js");
    new WebhookEventVerifier(secret).readPayload(call.raw, headers["x-sha2-signature"]);
  }),
  "orb": throws(async ({ secret, headers, ...call }) => {
    const { Webhooks } = await load("orb-billing/resources/webhooks.mjs");
    new Webhooks({ logLevel: "off", logger: {} }).verifySignature(text(call), headers, secret);
  }),
  "polar": async ({ secret, headers, ...call }) => {
    const { validateEvent, WebhookVerificationError } = require("@polar-sh/sdk/webhooks");
    try {
      validateEvent(text(call), headers, secret);
    } catch (error) {
      // Any other error is about the event's shape, once the signature was good.
      if (error instanceof WebhookVerificationError || error.constructor.name !== "SDKValidationError") return false;
    }
    return true;
  },
  "pusher": ({ secret, headers, ...call }) => {
    const Pusher = require("pusher");
    return new Pusher({ appId: "1", key: "app-key", secret, cluster: "eu" }).webhook({ headers, rawBody: text(call) }).isValid();
  },
  "replicate": ({ secret, headers, ...call }) => require("replicate").validateWebhook({ id: headers["webhook-id"], timestamp: headers["webhook-timestamp"], signature: headers["webhook-signature"], body: text(call), secret }),
  "sanity": async ({ secret, headers, ...call }) => {
    const { isValidRequest } = await load("@sanity/webhook/dist/index.mjs");
    return isValidRequest({ headers, body: text(call) }, secret);
  },
  "seam": throws(async ({ secret, headers, ...call }) => {
    const { SeamWebhook, SeamInvalidWebhookPayloadError } = await load("@seamapi/webhook/index.js");
    try {
      new SeamWebhook(secret).verify(text(call), headers);
    } catch (error) {
      // About the event's shape, once the signature was good.
      if (!(error instanceof SeamInvalidWebhookPayloadError)) throw error;
    }
  }),
  "stream": ({ secret, headers, ...call }) => {
    const { StreamChat } = require("stream-chat");
    return new StreamChat("key", secret).verifyWebhook(call.raw, headers["x-signature"]);
  },
  "telnyx": throws(async ({ public_key, headers, ...call }) => {
    const { TelnyxWebhook } = await load("telnyx/lib/webhooks.mjs");
    await new TelnyxWebhook(public_key).verify(text(call), headers);
  }),
  "vonage": ({ secret, headers, ...call }) => {
    const { verifySignature } = require("@vonage/jwt");
    const token = (headers["authorization"] ?? "").replace(/^Bearer /, "");
    if (!verifySignature(token, secret)) return false;
    const claims = JSON.parse(Buffer.from(token.split(".")[1], "base64url"));
    return claims.payload_hash === require("node:crypto").createHash("sha256").update(call.raw).digest("hex");
  },
  "jose": throws(async (call) => {
    const jose = await load("jose/dist/webapi/index.js");
    const token = /^Bearer (.*)$/.exec(call.headers["authorization"])[1];
    const { issuer, audience } = call.params;
    await jose.jwtVerify(token, jose.createLocalJWKSet(call.params.jwks), { algorithms: ["RS256", "PS256", "ES256"], issuer, audience, currentDate: new Date(now) });
  }),
  "atlassian": (call) => {
    const jwt = require("atlassian-jwt");
    const token = /^JWT (.*)$/.exec(call.headers["authorization"])[1];
    const claims = jwt.decodeSymmetric(token, call.secret, "HS256");
    return claims.qsh === jwt.createQueryStringHash(jwt.fromMethodAndUrl(call.method, call.url.replace(/^https:..[^/]*/, "")));
  },
  "tern-grafana": tern("grafana", 300),
  "tern-sentry": tern("sentry", 300),
  "tern-woocommerce": tern("woocommerce", 300),
  "tern-lemonsqueezy": tern("lemonsqueezy", 300),
};

for await (const line of createInterface({ input: process.stdin })) {
  const call = JSON.parse(line);
  now = call.now * 1000;
  call.raw = Buffer.from(call.body, "base64");
  call.secret = call.secrets[0];
  let answer;
  try {
    answer = { ok: Boolean(await judges[call.judge](call)) };
  } catch (error) {
    answer = { ok: false, error: String(error?.message ?? error).slice(0, 200) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
