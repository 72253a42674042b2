. "$BENCH/peers/hooklatch.sh"
DESC="The same with the filter redact: an author's address is masked"
CHECKS="hmac ip rate replay wasm"
FILTERS='"redact"'
FILTER="[filters.redact]
component = \"$ROOT/filters/redact/redact.wasm\"
config = { fields = [\"/commits/0/author/email\"] }"
