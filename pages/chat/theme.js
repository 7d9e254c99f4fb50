/** Light, dark, or as the system has it. This runs before the page is painted, so the page never flashes in the wrong one. */
document.documentElement.dataset.theme = localStorage.getItem("gateway-theme") ?? "auto";
