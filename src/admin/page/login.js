// The link that the gate prints at its first start carries the token behind the `#`, which no server and no log ever sees.
const field = document.getElementById("token");
const link = new URLSearchParams(location.hash.slice(1)).get("token");
document.getElementById("wrong").hidden = !location.search.startsWith("?wrong");
if (location.hash || location.search) {
  history.replaceState(null, "", "/");
}
if (link) {
  field.value = link;
  field.form.requestSubmit();
}
