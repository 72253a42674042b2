. "$BENCH/peers/hooklatch.sh"
DESC="The same with the filter route-by-event: destinations from a table"
CHECKS="hmac ip rate replay wasm"
FILTERS='"route-by-event"'
FILTER="[filters.route-by-event]
component = \"$ROOT/filters/route-by-event/route-by-event.wasm\"
config = { table = { push = \"backend\" } }"
