DESC="Hooklatch: preset github (HMAC-SHA256), allow list, rate limit, replay memory, metrics, audit line"
CHECKS="hmac ip rate replay"
version() { "$HOOKLATCH" --version | awk '{print $2}'; }
start() { rm -rf "$RUN/$NAME".{state,audit.jsonl}; conf=$(render hooklatch.toml); exec "$HOOKLATCH" run --config "$conf"; }
