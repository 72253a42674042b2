"""Every provider whose cases are made here: how it signs, and whose library judges."""

import judges as by
from judges import Node, Python, Reference
from tokens import DropboxSign, Graph, Introspection, Jwt, Signature, Travis, query_hash
from schemes import NOW, Basic, Box, Mac, Standard, Time, Token, key_hex, key_utf8, key_whsec

tern = "WebhookVerificationService.verifyWithPlatformConfig"


def bearer(name, docs, **more):
    return Token(name, docs, header="Authorization", prefix="Bearer ", **more)


def authorization(name, docs, **more):
    """The user sets the whole header."""
    return Token(name, docs, header="Authorization", **more)


def whsec(name, docs, **more):
    return Standard(name, docs, key=key_whsec, **more)


def schemes():
    def nuxt(name, file, function):
        return Node(name, "nuxt-webhook-validators", function)

    def python_standard(docs):
        return Python("standardwebhooks", "Webhook.verify", by.standard)

    return [
        # -- code hosting and CI --
        whsec("gitlab-signed", "docs.gitlab.com", facts=[["X-Gitlab-Event", "Push Hook"]], judges=[python_standard("")]),
        Mac("gitea", "docs.gitea.com/usage/webhooks", header="X-Gitea-Signature", facts=[["X-Gitea-Delivery", "f6266f16"], ["X-Gitea-Event", "push"]]),
        Mac("forgejo", "forgejo.org/docs/latest/user/webhooks", header="X-Forgejo-Signature", facts=[["X-Forgejo-Delivery", "f6266f16"], ["X-Forgejo-Event", "push"]]),
        Mac("gogs", "gogs.io/docs/features/webhook", header="X-Gogs-Signature", facts=[["X-Gogs-Delivery", "f6266f16"], ["X-Gogs-Event", "push"]]),
        Mac("circleci", "circleci.com/docs/guides/integration/outbound-webhooks", header="circleci-signature", form=("list", ",", "v1="), facts=[["circleci-event-type", "job-completed"]]),
        Mac(
            "buildkite", "buildkite.com/docs/apis/webhooks", header="X-Buildkite-Signature", form=("pairs", ",", "=", "signature"), time=Time("s", field="timestamp"),
            template="{t}.{b}", facts=[["X-Buildkite-Event", "build.finished"]],
        ),
        Token("buildkite-token", "buildkite.com/docs/apis/webhooks", header="X-Buildkite-Token", facts=[["X-Buildkite-Event", "build.finished"]]),
        Mac("terraform-cloud", "developer.hashicorp.com notification-configurations", header="X-TFE-Notification-Signature", algorithm="sha512"),
        Token("docker-hub", "docs.docker.com webhooks", query="token"),
        Mac("npm", "docs.npmjs.com npm-hook", header="x-npm-signature", prefix="sha256="),
        Mac("snyk", "docs.snyk.io validating-payloads", header="X-Hub-Signature", prefix="sha256=", facts=[["X-Snyk-Event", "project_snapshot/v0"], ["X-Snyk-Transport-ID", "8b5b"]]),
        Mac("sonarqube", "docs.sonarsource.com webhooks", header="X-Sonar-Webhook-HMAC-SHA256"),
        Mac(
            "sentry", "docs.sentry.io webhooks", header="Sentry-Hook-Signature", facts=[["Sentry-Hook-Timestamp", "1760000000"], ["Request-ID", "8b5b"], ["Sentry-Hook-Resource", "issue"]],
            judges=[Node("tern-sentry", "@hookflo/tern", tern)],
        ),
        Mac("jira", "developer.atlassian.com webhooks", header="X-Hub-Signature", prefix="sha256=", facts=[["X-Atlassian-Webhook-Identifier", "8b5b"]]),
        authorization("jenkins", "plugins.jenkins.io/http_request"),
        authorization("argocd", "argo-cd.readthedocs.io notifications webhook"),
        Mac("flux", "fluxcd.io generic-hmac", header="X-Signature", prefix="sha256="),
        # -- payments and billing --
        Mac(
            "adyen-platform", "docs.adyen.com", header="HmacSignature", encoding="base64", key=key_hex, facts=[["Protocol", "HmacSHA256"]],
            judges=[Node("adyen", "@adyen/api-library", "hmacValidator.validateHMACSignature"), Python("Adyen", "util.is_valid_hmac_payload", by.adyen)],
        ),
        Mac("lemon-squeezy", "docs.lemonsqueezy.com signing-requests", header="X-Signature", facts=[["X-Event-Name", "order_created"]], judges=[Node("tern-lemonsqueezy", "@hookflo/tern", tern)]),
        Mac("mollie", "docs.mollie.com", header="X-Mollie-Signature", prefix="sha256=", judges=[Python("mollie-api-py", "SignatureValidator.validate_payload", by.mollie)]),
        Mac(
            "recurly", "docs.recurly.com signature-verification", header="recurly-signature", form=("first-is-time", ","), time=Time("ms", field="", past=300), template="{t}.{b}",
        ),
        Basic("chargebee", "www.chargebee.com/docs webhooks"),
        Mac("xero", "developer.xero.com webhooks", header="x-xero-signature", encoding="base64"),
        Mac("quickbooks", "developer.intuit.com webhooks", header="intuit-signature", encoding="base64"),
        Mac(
            "revolut", "developer.revolut.com verify-the-payload-signature", header="Revolut-Signature", form=("list", ",", "v1="),
            time=Time("ms", header="Revolut-Request-Timestamp", past=300, future=300), template="v1.{t}.{b}",
        ),
        Mac(
            "worldpay", "developer.worldpay.com set-up-webhooks", header="Event-Signature", form=("pairs", ",", "/", "key-1"), prefix="SHA256/", params={"key_id": "key-1"},
        ),
        Mac(
            "modern-treasury", "", header="X-Signature", facts=[["X-Topic", "payment_order"]],
            judges=[Node("modern-treasury", "modern-treasury", "webhooks.validateSignature"), Python("modern-treasury", "webhooks.validate_signature", by.modern_treasury)],
        ),
        Mac(
            "orb", "", header="X-Orb-Signature", form=("list", " ", "v1="), time=Time("iso-bare", header="X-Orb-Timestamp", past=300, future=300), template="v1:{t}:{b}",
            judges=[Node("orb", "orb-billing", "webhooks.verifySignature"), Python("orb-billing", "webhooks.verify_signature", by.orb)],
        ),
        Standard("polar", "", key=key_utf8, judges=[Node("polar", "@polar-sh/sdk", "validateEvent")]),
        Mac("paystack", "paystack.com/docs/payments/webhooks", header="x-paystack-signature", algorithm="sha512"),
        Token("flutterwave", "developer.flutterwave.com webhooks", header="verif-hash"),
        whsec("increase", "", judges=[Python("increase", "events.unwrap", by.increase)]),
        whsec("lithic", "", judges=[Node("lithic", "lithic", "webhooks.verifySignature"), Python("lithic", "webhooks.verify_signature", by.lithic)]),
        # -- commerce, CRM, content --
        Mac("woocommerce", "woocommerce.com webhooks", header="X-WC-Webhook-Signature", encoding="base64", facts=[["X-WC-Webhook-Topic", "order.created"]], judges=[Node("tern-woocommerce", "@hookflo/tern", tern)]),
        whsec("bigcommerce", "developer.bigcommerce.com webhooks", judges=[python_standard("")]),
        Mac(
            "sanity", "", header="sanity-webhook-signature", encoding="base64url", form=("pairs", ",", "=", "v1"), time=Time("ms", field="t"), template="{t}.{b}",
            facts=[["idempotency-key", "8b5b"], ["sanity-operation", "create"]], judges=[Node("sanity", "@sanity/webhook", "isValidRequest")],
        ),
        Mac("kontent-ai", "", header="X-Kontent-ai-Signature", encoding="base64", judges=[Node("kontent", "@kontent-ai/webhook-helper", "signatureHelper.isValidSignatureFromString")]),
        Mac("webflow", "developers.webflow.com webhooks", header="x-webflow-signature", time=Time("ms", header="x-webflow-timestamp", past=300), template="{t}:{b}"),
        Mac(
            "klaviyo", "developers.klaviyo.com system-webhooks", header="Klaviyo-Signature", time=Time("http", header="Klaviyo-Timestamp"), template="{b}{t}", facts=[["Klaviyo-Webhook-Id", "01H"]],
        ),
        Token("mailchimp", "mailchimp.com sync-audience-data-webhooks", query="token", content_type="application/x-www-form-urlencoded"),
        Mac("customer-io", "docs.customer.io webhooks", header="X-CIO-Signature", time=Time("s", header="X-CIO-Timestamp"), template="v0:{t}:{b}"),
        Mac("segment", "segment.com/docs webhooks", header="X-Signature", algorithm="sha1"),
        Mac("intercom", "developers.intercom.com webhooks", header="X-Hub-Signature", prefix="sha1=", algorithm="sha1"),
        Mac("zendesk", "developer.zendesk.com verifying", header="X-Zendesk-Webhook-Signature", encoding="base64", time=Time("iso", header="X-Zendesk-Webhook-Signature-Timestamp"), template="{t}{b}"),
        Mac("typeform", "typeform.com secure-your-webhooks", header="Typeform-Signature", prefix="sha256=", encoding="base64"),
        Mac(
            "calendly", "developer.calendly.com webhook-signatures", header="Calendly-Webhook-Signature", form=("pairs", ",", "=", "v1"), time=Time("s", field="t", past=180), template="{t}.{b}",
        ),
        Mac("fourthwall", "", header="X-Fourthwall-Hmac-SHA256", encoding="base64", judges=[nuxt("fourthwall", "", "isValidFourthwallWebhook")]),
        Mac("clickup", "developer.clickup.com webhooksignature", header="X-Signature"),
        # -- work tools, documents, storage --
        Mac("notion", "developers.notion.com webhooks", header="X-Notion-Signature", prefix="sha256="),
        Mac("asana", "developers.asana.com webhooks-guide", header="X-Hook-Signature"),
        Mac("trello", "developer.atlassian.com trello webhooks", header="X-Trello-Webhook", algorithm="sha1", encoding="base64", template="{b}{u}", event={"action": {"id": "5f2c", "type": "updateCard"}}),
        Box(
            "box", "", encoding="base64", time=Time("iso-offset", header="BOX-DELIVERY-TIMESTAMP", past=600, future=0), template="{b}{t}",
            facts=[["BOX-DELIVERY-ID", "8b5b"], ["BOX-SIGNATURE-VERSION", "1"], ["BOX-SIGNATURE-ALGORITHM", "HmacSHA256"]],
            judges=[Node("box", "box-node-sdk", "WebhooksManager.validateMessage", each=False)],
        ),
        # -- chat --
        Mac("x", "docs.x.com securing webhooks", header="x-twitter-webhooks-signature", prefix="sha256=", encoding="base64"),
        Mac("fitbit", "dev.fitbit.com subscriptions", header="X-Fitbit-Signature", algorithm="sha1", encoding="base64", key=lambda secret: secret.encode() + b"&"),
        Token("strava", "developers.strava.com webhooks", query="token"),
        Mac(
            "stream", "", header="X-Signature", facts=[["X-Webhook-Id", "8b5b"], ["X-Webhook-Attempt", "1"]],
            judges=[Node("stream", "stream-chat", "StreamChat.verifyWebhook")],
        ),
        Mac(
            "pusher", "", header="X-Pusher-Signature", facts=[["X-Pusher-Key", "app-key"]], event={"time_ms": 1_760_000_000_017, "events": [{"name": "channel_occupied", "channel": "c"}]},
            judges=[Node("pusher", "pusher", "WebHook.isValid"), Python("pusher", "Pusher.validate_webhook", by.pusher)],
        ),
        # -- e-mail, telephony, media --
        bearer("brevo", "", judges=[nuxt("brevo", "", "isValidBrevoWebhook")]),
        Mac("mux", "", header="Mux-Signature", form=("pairs", ",", "=", "v1"), time=Time("s", field="t", past=300), template="{t}.{b}", judges=[Node("mux", "@mux/mux-node", "webhooks.verifySignature")]),
        Mac(
            "elevenlabs", "", header="ElevenLabs-Signature", form=("pairs", ",", "=", "v0"), time=Time("s", field="t", past=1800), template="{t}.{b}",
            judges=[Node("elevenlabs", "@elevenlabs/elevenlabs-js", "webhooks.constructEvent"), Python("elevenlabs", "webhooks.construct_event", by.elevenlabs)],
        ),
        *[
            Mac(
                name, "", header="X-Cld-Signature", algorithm=algorithm, digest=True, time=Time("s", header="X-Cld-Timestamp", past=7200), template="{b}{t}{s}", params={"algorithm": algorithm},
                judges=[Node("cloudinary", "cloudinary", "utils.verifyNotificationSignature"), Python("cloudinary", "utils.verify_notification_signature", by.cloudinary)],
            )
            for name, algorithm in (("cloudinary", "sha1"), ("cloudinary-sha256", "sha256"))
        ],
        Mac("onfido", "", header="X-SHA2-Signature", judges=[Node("onfido", "@onfido/api", "WebhookEventVerifier.readPayload"), Python("onfido-python", "WebhookEventVerifier.read_payload", by.onfido)]),
        Mac("smartcar", "", header="SC-Signature", judges=[Python("smartcar", "verify_payload", by.smartcar)]),
        # -- identity, cloud, generic carriers --
        whsec("clerk", "", brand="svix", judges=[Node("clerk", "@clerk/backend", "webhooks.verifyWebhook")]),
        whsec("seam", "", brand="svix", judges=[Node("seam", "@seamapi/webhook", "SeamWebhook.verify")]),
        whsec("replicate", "", time=Time("s", header="webhook-timestamp"), judges=[Node("replicate", "replicate", "validateWebhook"), Python("replicate", "Webhooks.validate", by.replicate)]),
        authorization("okta", "developer.okta.com event-hooks"),
        authorization("auth0", "auth0.com/docs custom log streams"),
        Token("azure-event-grid", "learn.microsoft.com event-grid secure-webhook-delivery", query="token"),
        authorization("eventbridge", "docs.aws.amazon.com api-destinations"),
        authorization("datadog", "docs.datadoghq.com webhooks"),
        bearer("alertmanager", "prometheus.io webhook_config"),
        Basic("alertmanager-basic", "prometheus.io webhook_config"),
        Mac("grafana", "grafana.com webhook-notifier", header="X-Grafana-Alerting-Signature"),
        Mac("grafana-timestamp", "grafana.com webhook-notifier", header="X-Grafana-Alerting-Signature", time=Time("s", header="X-Grafana-Alerting-Timestamp"), template="{t}:{b}"),
        bearer("grafana-bearer", "grafana.com webhook-notifier"),
        Basic("grafana-basic", "grafana.com webhook-notifier"),
        authorization("servicenow", "docs.servicenow.com outbound REST"),
        authorization("dynatrace", "docs.dynatrace.com webhook-integration"),
        authorization("appdynamics", "docs.appdynamics.com http-request-actions"),
        authorization("sensu", "docs.sensu.io handlers"),
        Jwt(
            "livekit", "", header="Authorization", params={"api_key": "APIkey1"}, claims={"iss": "APIkey1", "nbf": NOW - 5, "exp": NOW + 300}, checks=("iss", "exp"), body_claim=("sha256", "base64"),
            content_type="application/webhook+json", judges=[Node("livekit", "livekit-server-sdk", "WebhookReceiver.receive")],
        ),
        Jwt(
            "vonage", "developer.vonage.com webhooks", header="Authorization", prefix="Bearer ", claims={"iss": "Vonage", "iat": NOW, "jti": "c5ba8f24-1a14-4c10-bfdf-3fbe8ce511b5", "application_id": "a"},
            checks=("iss", "iat"), body_claim=("payload_hash", "hex"), skip={"iss", "iat", "nbf"}, judges=[Node("vonage", "@vonage/jwt", "verifySignature, and the body's digest")],
        ),
        Jwt(
            "kinde", "", whole_body=True, algorithm="RS256", content_type="application/jwt", params={"domain": "example.kinde.com"},
            claims={"event_id": "event_01", "type": "user.created", "data": {"user": {"id": "kp_1"}}}, judges=[Node("kinde", "@kinde/webhooks", "decodeWebhook")],
        ),
        Jwt(
            "atlassian-connect", "developer.atlassian.com understanding-jwt-for-connect-apps", header="Authorization", prefix="JWT ", url="https://hooks.example.com/in/atlassian-connect?b=2&a=1",
            claims={"iss": "client-key", "iat": NOW, "exp": NOW + 180, "qsh": query_hash}, checks=("exp", "qsh"), skip={"exp", "no-exp", "nbf"},
            judges=[Node("atlassian", "atlassian-jwt", "decodeSymmetric and createQueryStringHash")],
        ),
        Jwt(
            "oauth2-jwt", "RFC 9068", header="Authorization", prefix="Bearer ", algorithm="RS256", params={"issuer": "https://issuer.example.com", "audience": "https://hooks.example.com"},
            claims={"iss": "https://issuer.example.com", "aud": "https://hooks.example.com", "sub": "sender", "iat": NOW, "exp": NOW + 300}, checks=("iss", "aud", "exp"), skip={"no-exp"},
            judges=[Node("jose", "jose", "jwtVerify with a key set")],
        ),
        Introspection("oauth2-introspection", "RFC 7662", params={"issuer": "https://issuer.example.com"}),
        Graph("microsoft-graph", "learn.microsoft.com change-notifications-delivery-webhooks"),
        DropboxSign("dropbox-sign", "", judges=[Python("dropbox-sign", "EventCallbackHelper.is_valid", by.dropbox_sign)]),
        Signature(
            "telnyx", "", header="telnyx-signature-ed25519", encoding="base64", handed="base64", time=Time("s", header="telnyx-timestamp", past=300, future=300), template="{t}|{b}",
            event={"data": {"id": "5f2c", "event_type": "call.initiated"}},
            judges=[Node("telnyx", "telnyx", "webhooks.unwrap"), Python("telnyx", "webhook_verification.verify_webhook_signature", by.telnyx)],
        ),
        Signature(
            "kick", "", kind="rsa", header="Kick-Event-Signature", encoding="base64", time=Time("iso", header="Kick-Event-Message-Timestamp"), id_header="Kick-Event-Message-Id", template="{i}.{t}.{b}",
            facts=[["Kick-Event-Type", "chat.message.sent"]], judges=[nuxt("kick", "", "isValidKickWebhook")],
        ),
        Travis("travis", "docs.travis-ci.com configuring-webhook-notifications", kind="rsa", algorithm="sha1", header="Signature", encoding="base64"),
        Signature("wise", "docs.wise.com event-handling", kind="rsa", header="X-Signature-SHA256", encoding="base64", facts=[["X-Delivery-Id", "8b5b"]]),
        Signature("circle", "developers.circle.com verify-webhook-notifications", kind="ecdsa", handed="spki", header="X-Circle-Signature", encoding="base64", facts=[["X-Circle-Key-Id", "key-1"]]),
        bearer("bearer", "RFC 6750"),
        Basic("basic", "RFC 7617"),
    ]
