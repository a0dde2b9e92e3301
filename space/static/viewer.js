// The viewer: NiiVue where the browser has WebGL2, else a slider over slices that the server draws.
(() => {
  const AXES = { sagittal: 0, coronal: 1, axial: 2 };
  const LETTERS = [["L", "R"], ["P", "A"], ["I", "S"]];
  const DRAG = { crosshair: 8, windowing: 9, pan: 3 };

  class Viewer {
    constructor(element, trigger) {
      this.element = element;
      this.trigger = trigger;
      this.scan = null;
      this.queue = Promise.resolve();
      const find = (name) => element.querySelector(`[data-part=${name}]`);
      for (const name of ["stage", "canvas", "picture", "empty", "slice", "index", "window", "invert", "drag", "where", "caption"]) {
        this[name] = find(name);
      }
      this.letters = [...element.querySelectorAll("[data-letter]")];
      this.overlayRow = find("overlay-row");
      this.opacity = find("opacity");
      this.planes = [...element.querySelectorAll("[data-plane]")];
      this.gl = "niivue" in window && document.createElement("canvas").getContext("webgl2") !== null;
      element.querySelector("[data-part=viewer]").dataset.mode = this.gl ? "niivue" : "flat";
      this.listen();
    }

    // With the first scan: compiling shaders takes a weak machine seconds, in which the page should open.
    start() {
      this.niivue = new niivue.Niivue({
        isRadiologicalConvention: true,
        isResizeCanvas: true,
        backColor: [0, 0, 0, 1],
        crosshairColor: [0.25, 0.75, 0.8, 0.9],
        crosshairWidth: 0.3,
        crosshairWidthUnit: "percent",
        fontColor: [0.95, 0.97, 1, 1],
        isForceMouseClickToVoxelCenters: true,
        dragAndDropEnabled: false,
        isColorbar: false,
        multiplanarShowRender: 0,
        multiplanarPadPixels: 4,
        isOrientationTextVisible: true,
        showAllOrientationMarkers: true,
        logLevel: "error",
        loadingText: "",
        viewModeHotKey: "",
        clipPlaneHotKey: "",
        cycleClipPlaneHotKey: "",
      });
      this.ready = this.niivue.attachToCanvas(this.canvas);
      this.niivue.onLocationChange = (location) => this.located(location);
      this.setDrag(false);
      const watchWindow = () => requestAnimationFrame(() => this.tellWindow());
      for (const event of ["mousemove", "touchmove", "dblclick"]) this.canvas.addEventListener(event, watchWindow);
    }

    listen() {
      for (const button of this.planes) button.addEventListener("click", () => this.setPlane(button.dataset.plane));
      this.slice.addEventListener("input", () => this.goTo(Number(this.slice.value)));
      this.window.addEventListener("change", () => this.setWindow(this.scan.windows[Number(this.window.value)]));
      this.invert.addEventListener("click", () => this.setInverted(this.invert.getAttribute("aria-pressed") !== "true"));
      this.drag.addEventListener("click", () => this.setDrag(this.drag.getAttribute("aria-pressed") !== "true"));
      this.opacity.addEventListener("input", () => this.setOpacity());
      this.picture.addEventListener("wheel", (event) => {
        event.preventDefault();
        this.goTo(Number(this.slice.value) + Math.sign(event.deltaY));
      });
      this.canvas.addEventListener("keydown", (event) => {
        const step = { PageUp: 1, PageDown: -1 }[event.key];
        if (step && this.scan) {
          event.preventDefault();
          this.goTo(Number(this.slice.value) + step);
        }
      });
    }

    // One after the other: a second scan may come while the first still loads.
    show(scan) {
      this.queue = this.queue.then(() => this.load(scan)).catch((error) => this.say(`The scan cannot be shown: ${error.message}`));
      return this.queue;
    }

    async load(scan) {
      const before = this.scan;
      this.scan = scan;
      this.empty.hidden = Boolean(scan);
      this.element.querySelector("[data-part=viewer]").classList.toggle("has-scan", Boolean(scan));
      if (!scan) return this.clear();
      const same = before && before.url === scan.url;
      if (!same) this.prepare(scan);
      if (!this.gl) return this.showFlat(scan, same && Boolean(before.pictures));
      if (!this.niivue) this.start();
      await this.ready;
      if (!same) await this.loadVolume(scan);
      if (scan.overlay && !(same && before.overlay)) await this.loadOverlay(scan);
      this.overlayRow.hidden = !scan.overlay;
      if (scan.overlay) {
        this.caption.textContent =
          "The Perceiver's attention, one value a patch, where it is above the mean patch; brightest is " +
          `${scan.brightest.toFixed(1)} times the mean. It explains no answer.`;
      }
      this.element.querySelector("[data-part=viewer]").dataset.shows = String(scan.number);
    }

    clear() {
      while (this.niivue?.volumes.length) this.niivue.removeVolumeByIndex(0);
      this.picture.hidden = true;
      this.overlayRow.hidden = true;
      this.say("");
    }

    prepare(scan) {
      this.window.replaceChildren(...scan.windows.map(({ name }, i) => new Option(name, String(i))));
      this.window.disabled = scan.windows.length === 0;
      this.drag.disabled = scan.windows.length === 0 || !this.gl;
      this.invert.disabled = false;
      this.setInverted(false);
      for (const button of this.planes) button.disabled = !scan.volume || !this.gl;
      for (const letter of this.letters) letter.textContent = this.gl ? "" : scan.letters[letter.dataset.letter] || "";
      this.say("");
    }

    async loadVolume(scan) {
      const first = scan.windows[0];
      const range = first ? { cal_min: first.low, cal_max: first.high } : {};
      await this.niivue.loadVolumes([{ url: scan.url, name: scan.file, colormap: "gray", ...range }]);
      this.niivue.setIsOrientationTextVisible(scan.placed);
      const [, ...sizes] = this.niivue.volumes[0].dimsRAS;
      sizes.forEach((n, axis) => (this.niivue.scene.crosshairPos[axis] = (Math.floor(n / 2) + 0.5) / n));
      this.setPlane(scan.plane);
      this.niivue.createOnLocationChange();
    }

    async loadOverlay(scan) {
      if (this.niivue.volumes.length > 1) this.niivue.removeVolumeByIndex(1);
      await this.niivue.addVolumeFromUrl({
        url: scan.overlay,
        name: "attention.nii.gz",
        colormap: "warm",
        opacity: Number(this.opacity.value) / 100,
      });
    }

    showFlat(scan, same) {
      this.pictures = scan.pictures;
      if (!this.pictures) return this.trigger("flat", { number: scan.number });
      for (const button of this.planes) button.setAttribute("aria-pressed", String(button.dataset.plane === scan.plane));
      this.picture.hidden = false;
      this.slice.max = String(this.pictures.length - 1);
      this.slice.disabled = this.pictures.length < 2;
      this.overlayRow.hidden = true;
      this.element.querySelector("[data-part=viewer]").dataset.shows = String(scan.number);
      this.goTo(same ? Number(this.slice.value) : Math.floor(this.pictures.length / 2));
    }

    setPlane(plane) {
      if (!this.gl || !this.scan) return;
      this.plane = plane;
      for (const button of this.planes) button.setAttribute("aria-pressed", String(button.dataset.plane === plane));
      const types = { axial: 0, coronal: 1, sagittal: 2, all: 3 };
      this.niivue.setSliceType(types[plane]);
      const n = this.slices();
      this.slice.max = String(n - 1);
      this.slice.disabled = n < 2;
      this.tellSlice();
    }

    axis() {
      return AXES[this.plane === "all" ? this.scan.plane : this.plane];
    }

    slices() {
      return this.niivue.volumes[0].dimsRAS[1 + this.axis()];
    }

    goTo(index) {
      const last = Number(this.slice.max);
      index = Math.min(Math.max(index, 0), last);
      if (!this.gl) {
        this.slice.value = String(index);
        this.picture.src = this.pictures[index];
        this.picture.alt = `Slice ${index + 1} of ${last + 1}`;
        this.index.textContent = `${index + 1} / ${last + 1}`;
        return;
      }
      this.niivue.scene.crosshairPos[this.axis()] = (index + 0.5) / (last + 1);
      this.niivue.drawScene();
      this.niivue.createOnLocationChange();
    }

    tellSlice() {
      const n = this.slices();
      const index = Math.min(Math.floor(this.niivue.scene.crosshairPos[this.axis()] * n), n - 1);
      this.slice.value = String(index);
      this.index.textContent = `${index + 1} / ${n}`;
      this.slice.setAttribute("aria-valuetext", `slice ${index + 1} of ${n}`);
    }

    setWindow({ low, high }) {
      if (!this.gl) return this.trigger("flat", { number: this.scan.number, low, high });
      const volume = this.niivue.volumes[0];
      [volume.cal_min, volume.cal_max] = [low, high];
      this.niivue.updateGLVolume();
      this.tellWindow();
    }

    tellWindow() {
      if (!this.niivue.volumes.length || !this.scan.windows.length) return;
      const { cal_min: low, cal_max: high } = this.niivue.volumes[0];
      const near = (a, b) => Math.abs(a - b) <= 1e-3 * Math.max(1, Math.abs(b));
      const named = this.scan.windows.findIndex((w) => near(low, w.low) && near(high, w.high));
      let own = this.window.querySelector("[data-own]");
      if (named >= 0) {
        own?.remove();
        this.window.value = String(named);
        return;
      }
      if (!own) {
        own = new Option("", "own");
        own.dataset.own = "";
        this.window.append(own);
      }
      const short = (x) => String(Number(x.toPrecision(4)));
      own.textContent = `Own: ${short(low)} to ${short(high)}`;
      own.disabled = true;
      this.window.value = "own";
    }

    setInverted(inverted) {
      this.invert.setAttribute("aria-pressed", String(inverted));
      this.picture.classList.toggle("inverted", inverted);
      if (!this.niivue?.volumes.length) return;
      this.niivue.volumes[0].colormapInvert = inverted;
      this.niivue.updateGLVolume();
    }

    setDrag(windows) {
      this.drag.setAttribute("aria-pressed", String(windows));
      if (!this.gl) return;
      const primary = windows ? DRAG.windowing : DRAG.crosshair;
      this.niivue.setMouseEventConfig({ leftButton: { primary }, rightButton: DRAG.windowing, centerButton: DRAG.pan });
      this.niivue.setTouchEventConfig({ singleTouch: primary, doubleTouch: DRAG.windowing });
    }

    setOpacity() {
      if (this.niivue?.volumes.length > 1) this.niivue.setOpacity(1, Number(this.opacity.value) / 100);
    }

    located({ mm, values }) {
      if (!this.scan || !this.niivue.volumes.length) return;
      this.tellSlice();
      const value = values[0] ? Number(values[0].value.toPrecision(5)) : "";
      const grey = this.scan.windows.length ? ` · ${value}${this.scan.unit}` : "";
      if (!this.scan.placed) return this.say(grey.slice(3));
      const place = [0, 1, 2].map((i) => `${LETTERS[i][Number(mm[i] >= 0)]} ${Math.abs(mm[i]).toFixed(1)}`).join("  ");
      this.where.dataset.mm = [0, 1, 2].map((i) => mm[i].toFixed(3)).join(" ");
      this.say(`${place} mm${grey}`);
    }

    say(words) {
      this.where.textContent = words;
    }
  }

  window.radfmViewer = (element, props, trigger, watch) => {
    const viewer = new Viewer(element, trigger);
    element.viewer = viewer;
    watch("value", () => viewer.show(props.value));
    if (props.value) viewer.show(props.value);
  };

  // Chips: one button shows a scan, the other writes its place into the question.
  window.radfmChips = (element, trigger) => {
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.dataset.show) return trigger("select", { number: Number(button.dataset.show) });
      const box = document.querySelector("#question textarea, #question input");
      const mark = `[${button.dataset.place}] `;
      box.setRangeText(mark, box.selectionStart, box.selectionEnd, "end");
      box.dispatchEvent(new Event("input", { bubbles: true }));
      box.focus();
    });
  };
})();
