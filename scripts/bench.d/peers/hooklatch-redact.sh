. "$BENCH/peers/hooklatch.sh"
DESC="The same with the filter redact: an author's address is removed"
CHECKS="hmac ip rate replay wasm"
FILTERS='"redact"'
FILTER="[filters.redact]
component = \"$ROOT/filters/redact/redact.wasm\"
config = { remove = ["/commits/0/author/email"] }"
