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
