//! Signatures by code that is not ours: RustCrypto for the many, Python's and Node's libraries where a test is about the signing.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::tools;

/// The secret of the tests' `github` routes.
pub(crate) const SECRET: &str = "It's a Secret to Everybody";

/// The header GitHub would send with `body`.
pub(crate) fn github(body: &[u8]) -> (&'static str, String) {
    github_with(SECRET, body)
}

pub(crate) fn github_with(secret: &str, body: &[u8]) -> (&'static str, String) {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a MAC takes a key of any length");
    mac.update(body);
    ("x-hub-signature-256", format!("sha256={}", data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes())))
}

/// The headers of other providers, made by Python's `hmac`: `stripe`, `slack`, `standardwebhooks`, `shopify`.
pub(crate) fn python(provider: &str, secret: &str, time: u64, id: &str, body: &[u8]) -> Vec<(String, String)> {
    const SCRIPT: &str = r#"
import base64, hashlib, hmac, json, sys
provider, secret, time, id = sys.argv[1:]
body = sys.stdin.buffer.read()
mac = lambda key, text: hmac.new(key, text, hashlib.sha256)
if provider == "stripe":
    out = {"Stripe-Signature": f"t={time},v1=" + mac(secret.encode(), time.encode() + b"." + body).hexdigest()}
elif provider == "slack":
    out = {"X-Slack-Request-Timestamp": time, "X-Slack-Signature": "v0=" + mac(secret.encode(), b"v0:" + time.encode() + b":" + body).hexdigest()}
elif provider == "standardwebhooks":
    key = base64.b64decode(secret.removeprefix("whsec_"))
    out = {"webhook-id": id, "webhook-timestamp": time,
           "webhook-signature": "v1," + base64.b64encode(mac(key, f"{id}.{time}.".encode() + body).digest()).decode()}
elif provider == "shopify":
    out = {"X-Shopify-Hmac-SHA256": base64.b64encode(mac(secret.encode(), body).digest()).decode(), "X-Shopify-Topic": "orders/create",
           "X-Shopify-Shop-Domain": "example.myshopify.com", "X-Shopify-API-Version": "2025-10", "X-Shopify-Webhook-Id": id}
else:
    sys.exit("no such provider")
print(json.dumps(list(out.items())))
"#;
    let out = tools::output(tools::python(SCRIPT).args([provider, secret, &time.to_string(), id]), body);
    serde_json::from_str(&out).expect("the script prints JSON")
}
