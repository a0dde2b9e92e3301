// Keys of the rating page; page.py describes them. Text fields keep their keys.
(() => {
  const isText = (element) => element.matches("textarea, input:not([type=radio]):not([type=range])");
  // Gradio writes the id of a group to two elements, one in the other.
  const answers = () => [...document.querySelectorAll("[id^=answer-]")].filter((e) => !e.parentElement.closest("[id^=answer-]"));
  const isRated = (answer) => answer.querySelector("input[type=radio]:checked") !== null;
  const shown = () => document.querySelector("#progress [data-shown]")?.dataset.shown;
  let last = null;

  // Between the way to another question and its arrival no key rates: it would rate what is no longer looked at.
  function awaitQuestion() {
    const before = shown();
    const page = document.documentElement.dataset;
    page.busy = "";
    last = null;
    document.activeElement.blur(); // a radio that was clicked would take the first key of the next question
    const look = () => {
      if (shown() === before) requestAnimationFrame(look);
      else requestAnimationFrame(() => requestAnimationFrame(() => delete page.busy));
    };
    look();
  }
  document.addEventListener("click", (event) => event.target.closest("#next, #previous") && awaitQuestion(), true);

  function rate(value) {
    const focused = document.activeElement.closest("[id^=answer-]");
    const answer = focused ?? answers().find((candidate) => !isRated(candidate));
    const radio = answer && [...answer.querySelectorAll("input[type=radio]")][value];
    if (radio) {
      radio.click();
      last = answer;
      document.activeElement.blur();
    }
  }

  function moveSlice(step) {
    const slider = document.querySelector("#slice input[type=range]");
    if (!slider) return;
    const value = Math.min(Math.max(Number(slider.value) + step, Number(slider.min)), Number(slider.max));
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  }

  document.addEventListener(
    "keydown",
    (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape") document.activeElement.blur();
      if (isText(event.target) || !document.querySelector("#next") || "busy" in document.documentElement.dataset) return;
      const actions = {
        n: () => document.querySelector("#next").click(),
        p: () => document.querySelector("#previous").click(),
        r: () => (last ?? answers()[0]).querySelector("textarea, input[type=text]").focus(),
        ArrowUp: () => moveSlice(1),
        ArrowDown: () => moveSlice(-1),
      };
      const action = /^[0-5]$/.test(event.key) ? () => rate(Number(event.key)) : actions[event.key];
      if (action) {
        event.preventDefault();
        event.stopPropagation();
        action();
      }
    },
    true,
  );
})();
