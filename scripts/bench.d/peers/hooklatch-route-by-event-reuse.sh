. "$BENCH/peers/hooklatch-route-by-event.sh"
DESC="The same with the filter route-by-event, which calls itself stateless, and one instance for many events"
FILTER="$FILTER
reuse = 10000"
