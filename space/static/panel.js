// The series panel: one button shows a scan, the other writes its place into the question.
window.radfmPanel = (element, trigger) => {
  element.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.show) return trigger("select", { number: Number(button.dataset.show) });
    const box = document.querySelector("#question textarea, #question input");
    box.setRangeText(`[${button.dataset.place}] `, box.selectionStart, box.selectionEnd, "end");
    box.dispatchEvent(new Event("input", { bubbles: true }));
    box.focus();
  });
};

// Gradio names the drop zone for screen readers with other words than it shows, so that speaking the shown ones hits nothing.
window.radfmNameDropZone = () => {
  const drop = document.querySelector("#drop");
  if (!drop) return requestAnimationFrame(window.radfmNameDropZone); // Gradio puts it on the page later
  const name = () => {
    for (const zone of drop.querySelectorAll(".upload-container")) {
      const shown = zone.innerText.replace(/\s+/g, " ").trim();
      if (zone.getAttribute("aria-label") !== shown) zone.setAttribute("aria-label", shown);
    }
  };
  new MutationObserver(name).observe(drop, { childList: true, subtree: true, attributes: true });
  name();
};
