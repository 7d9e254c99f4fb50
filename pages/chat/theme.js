/** Light, dark, or as the system has it. This runs before the page is painted, so the page never flashes in the wrong one. */
try {
  document.documentElement.dataset.theme = localStorage.getItem("gateway-theme") ?? "auto";
} catch {
  document.documentElement.dataset.theme = "auto"; // the browser denies storage, or has none
}
