/** Light, dark, or as the system has it: set before the page is painted, so it runs ahead of everything else. */
document.documentElement.dataset.theme = localStorage.getItem("gateway-theme") ?? "auto";
