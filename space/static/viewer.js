// The viewer: NiiVue where the browser has WebGL2, else a slider over slices that the server draws.
// A volume comes twice: coarse, so that it is seen at once, and then with all voxels.
(() => {
  const AXES = { sagittal: 0, coronal: 1, axial: 2 };
  const TYPES = { axial: 0, coronal: 1, sagittal: 2, all: 3 };
  const LETTERS = [["L", "R"], ["P", "A"], ["I", "S"]];
  const PARTS = [
    "stage", "canvas", "picture", "empty", "loading", "slice", "index", "window", "where", "caption", "opacity", "facts",
    "choices", "series", "volume", "help", "close",
  ];

  class Viewer {
    constructor(element, trigger) {
      this.element = element;
      this.trigger = trigger;
      this.scan = null;
      this.queue = Promise.resolve();
      this.find = (name) => element.querySelector(`[data-part=${name}]`);
      for (const name of PARTS) this[name] = this.find(name);
      this.root = this.find("viewer");
      this.overlayRow = this.find("overlay-row");
      this.letters = [...element.querySelectorAll("[data-letter]")];
      this.planes = [...element.querySelectorAll("[data-plane]")];
      this.tools = Object.fromEntries([...element.querySelectorAll("[data-tool]")].map((tool) => [tool.dataset.tool, tool]));
      this.gl = "niivue" in window && document.createElement("canvas").getContext("webgl2") !== null;
      this.root.dataset.mode = this.gl ? "niivue" : "flat";
      radfmTools(this);
      this.listen();
    }

    // With the first scan: compiling shaders takes a weak machine seconds, in which the page should open.
    start() {
      this.niivue = new niivue.Niivue({
        isRadiologicalConvention: true,
        sagittalNoseLeft: true,
        isResizeCanvas: true,
        backColor: [0, 0, 0, 1],
        crosshairColor: [0.25, 0.85, 0.9, 0.9],
        crosshairWidth: 0.3,
        crosshairWidthUnit: "percent",
        fontColor: [0.95, 0.97, 1, 1],
        measureLineColor: [1, 0.85, 0.2, 1],
        measureTextColor: [1, 0.85, 0.2, 1],
        isForceMouseClickToVoxelCenters: true,
        dragAndDropEnabled: false,
        isColorbar: false,
        multiplanarLayout: 2,
        multiplanarShowRender: 1,
        multiplanarPadPixels: 4,
        showAllOrientationMarkers: true,
        logLevel: "error",
        loadingText: "",
        viewModeHotKey: "",
        clipPlaneHotKey: "",
        cycleClipPlaneHotKey: "",
      });
      this.ready = this.niivue.attachToCanvas(this.canvas);
      this.niivue.onLocationChange = (location) => this.located(location);
      this.useTool(null);
      const watchWindow = () => requestAnimationFrame(() => this.tellWindow());
      for (const event of ["mousemove", "touchmove", "dblclick"]) this.canvas.addEventListener(event, watchWindow);
    }

    listen() {
      for (const button of this.planes) button.addEventListener("click", () => this.setPlane(button.dataset.plane));
      this.slice.addEventListener("input", () => this.goTo(Number(this.slice.value)));
      this.window.addEventListener("change", () => this.setWindow(Number(this.window.value)));
      this.opacity.addEventListener("input", () => this.setOpacity());
      this.series.addEventListener("change", () => this.choose({ series: this.series.value }));
      this.volume.addEventListener("change", () => this.choose({ volume: Number(this.volume.value) }));
      this.picture.addEventListener("wheel", (event) => {
        event.preventDefault();
        this.goTo(Number(this.slice.value) + Math.sign(event.deltaY));
      });
    }

    choose(what) {
      for (const select of [this.series, this.volume]) select.disabled = true;
      this.trigger("choose", { number: this.scan.number, ...what });
    }

    // One after the other: a second scan may come while the first still loads.
    show(scan) {
      this.latest = scan;
      this.queue = this.queue
        .then(() => this.load(scan))
        .catch((error) => this.say(`The scan cannot be shown: ${error.message}`));
      return this.queue;
    }

    async load(scan) {
      if (scan !== this.latest) return;
      const before = this.scan;
      this.scan = scan;
      this.empty.hidden = Boolean(scan);
      this.root.classList.toggle("has-scan", Boolean(scan));
      if (!scan) return this.clear();
      const same = before && before.id === scan.id;
      if (!same) this.prepare(scan);
      this.offerChoices(scan);
      if (!this.gl) return scan.url && this.showFlat(scan, same && Boolean(before.pictures));
      if (!scan.url && !scan.coarse) return;
      if (!this.niivue) this.start();
      await this.ready;
      if (!same) await this.loadVolume(scan.coarse || scan.url, scan.coarse ? "coarse" : "full", scan);
      this.root.dataset.shows = String(scan.number);
      if (scan.url && this.root.dataset.quality !== "full" && scan === this.latest) {
        this.loading.hidden = false;
        await this.loadVolume(scan.url, "full", scan).finally(() => (this.loading.hidden = true));
      }
      await this.loadOverlay(scan, same ? before.overlay : null);
    }

    clear() {
      this.play(false);
      while (this.niivue?.volumes.length) this.niivue.removeVolumeByIndex(0);
      this.niivue?.drawScene();
      this.picture.hidden = true;
      this.overlayRow.hidden = true;
      this.choices.hidden = true;
      for (const letter of this.letters) letter.textContent = "";
      for (const control of [this.slice, this.window, ...this.planes]) control.disabled = true;
      for (const [name, tool] of Object.entries(this.tools)) tool.disabled = name !== "help";
      this.window.replaceChildren();
      this.facts.replaceChildren();
      this.index.textContent = "";
      this.canvas.setAttribute("aria-label", "No scan yet");
      delete this.root.dataset.shows;
      this.say("");
    }

    prepare(scan) {
      this.play(false);
      this.window.replaceChildren(...scan.windows.map(({ name }, i) => new Option(name, String(i))));
      const grey = scan.windows.length > 0;
      this.window.disabled = !grey;
      for (const button of this.planes) button.disabled = !scan.volume || !this.gl;
      this.tools.window.disabled = !grey || !this.gl;
      this.tools.measure.disabled = !this.gl || !scan.placed;
      this.tools.crosshair.disabled = !this.gl;
      this.tools.invert.disabled = !grey;
      this.tools.play.disabled = !scan.volume;
      this.tools.full.disabled = !document.fullscreenEnabled;
      this.setInverted(false);
      this.facts.replaceChildren(
        ...scan.facts.map(([label, value]) => {
          const row = document.createElement("tr");
          const head = row.appendChild(document.createElement("th"));
          head.scope = "row";
          head.textContent = label;
          row.appendChild(document.createElement("td")).textContent = value;
          return row;
        }),
      );
      this.say("");
    }

    offerChoices(scan) {
      const offer = (select, row, choices, chosen) => {
        this.find(row).hidden = choices.length === 0;
        select.disabled = false;
        select.replaceChildren(...choices.map(({ value, label }) => new Option(label, String(value))));
        if (chosen !== undefined) select.value = String(chosen);
      };
      offer(this.series, "series-row", scan.series, scan.chosen.series);
      offer(this.volume, "volume-row", scan.volumes, scan.chosen.volume);
      this.choices.hidden = scan.series.length === 0 && scan.volumes.length === 0;
    }

    // Replaces what is shown. Where it is the same scan with more voxels, place and window stay.
    async loadVolume(url, quality, scan) {
      const refine = quality === "full" && this.root.dataset.quality === "coarse" && this.niivue.volumes.length > 0;
      const mm = refine && this.niivue.frac2mm(this.niivue.scene.crosshairPos);
      const now = refine ? this.niivue.volumes[0] : null;
      const first = now ? { low: now.cal_min, high: now.cal_max } : scan.windows[0];
      const range = scan.windows.length ? { cal_min: first.low, cal_max: first.high } : {};
      const inverted = now?.colormapInvert ?? false;
      await this.niivue.loadVolumes([{ url, name: url.split("/").at(-1), colormap: "gray", ...range }]);
      this.root.dataset.quality = quality;
      if (inverted) this.setInverted(true);
      if (mm) {
        this.niivue.scene.crosshairPos = this.niivue.mm2frac(mm.slice(0, 3));
        this.setPlane(this.plane);
      } else {
        this.center();
        this.setPlane(scan.plane);
      }
      this.niivue.createOnLocationChange();
    }

    center() {
      const [, ...sizes] = this.niivue.volumes[0].dimsRAS;
      sizes.slice(0, 3).forEach((n, axis) => (this.niivue.scene.crosshairPos[axis] = (Math.floor(n / 2) + 0.5) / n));
    }

    async loadOverlay(scan, before) {
      this.overlayRow.hidden = !scan.overlay;
      if (!scan.overlay) {
        delete this.root.dataset.overlay;
        return;
      }
      this.caption.textContent =
        "The Perceiver's attention, one value a patch, where it is above the mean patch; brightest is " +
        `${scan.brightest.toFixed(1)} times the mean. It explains no answer.`;
      if (before && this.niivue.volumes.length > 1) return;
      const overlay = await niivue.NVImage.loadFromUrl({
        url: scan.overlay,
        name: "attention.nii.gz",
        colormap: "warm",
        opacity: Number(this.opacity.value) / 100,
      });
      this.niivue.volumes = [this.niivue.volumes[0], overlay];
      this.niivue.overlays = [overlay];
      this.drawOverlay();
      this.root.dataset.overlay = String(scan.number);
    }

    // NiiVue's addVolume and setOpacity send the scan to the graphics card again too, up to 200 MB.
    drawOverlay() {
      this.niivue.refreshLayers(this.niivue.volumes[1], 1);
      this.niivue.drawScene();
    }

    showFlat(scan, same) {
      this.pictures = scan.pictures;
      if (!this.pictures) return this.trigger("flat", { number: scan.number, window: 0 });
      for (const button of this.planes) button.setAttribute("aria-pressed", String(button.dataset.plane === scan.plane));
      this.plane = scan.plane;
      this.showLetters(scan.plane);
      this.picture.hidden = false;
      this.slice.max = String(Math.max(this.pictures.length - 1, 0));
      this.slice.disabled = this.pictures.length < 2;
      this.overlayRow.hidden = true;
      this.root.dataset.shows = String(scan.number);
      this.goTo(same ? Number(this.slice.value) : Math.floor(this.pictures.length / 2));
    }

    showLetters(plane) {
      const edges = this.scan.letters[plane] || {};
      for (const letter of this.letters) letter.textContent = edges[letter.dataset.letter] || "";
    }

    setPlane(plane) {
      if (!this.gl || !this.scan || !this.niivue?.volumes.length) return;
      this.plane = plane;
      for (const button of this.planes) button.setAttribute("aria-pressed", String(button.dataset.plane === plane));
      // Two letters for an oblique edge are ours; NiiVue has one, and where there are four views only it knows their edges.
      this.niivue.setIsOrientationTextVisible(plane === "all" && this.scan.placed);
      this.showLetters(plane);
      this.niivue.setSliceType(TYPES[plane]);
      const n = this.slices();
      this.slice.max = String(n - 1);
      this.slice.disabled = n < 2;
      this.tools.play.disabled = n < 2;
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
        this.picture.src = this.pictures[index] || "";
        this.picture.alt = `Slice ${index + 1} of ${last + 1} of ${this.scan.title}`;
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
      const plane = this.plane === "all" ? this.scan.plane : this.plane;
      this.slice.value = String(index);
      this.index.textContent = `${index + 1} / ${n}`;
      this.slice.setAttribute("aria-valuetext", `slice ${index + 1} of ${n}`);
      const what = this.scan.volume ? `${plane} slice ${index + 1} of ${n}` : "image";
      this.canvas.setAttribute("aria-label", `${this.scan.title}, ${what}`);
    }

    setWindow(index) {
      const window = this.scan?.windows[index];
      if (!window) return;
      this.window.value = String(index);
      if (!this.gl) return this.trigger("flat", { number: this.scan.number, window: index });
      const volume = this.niivue.volumes[0];
      [volume.cal_min, volume.cal_max] = [window.low, window.high];
      this.niivue.updateGLVolume();
      this.tellWindow();
    }

    tellWindow() {
      if (!this.niivue.volumes.length || !this.scan?.windows.length) return;
      const { cal_min: low, cal_max: high } = this.niivue.volumes[0];
      const near = (a, b) => Math.abs(a - b) <= 1e-3 * Math.max(1, Math.abs(b));
      const named = this.scan.windows.findIndex((w) => near(low, w.low) && near(high, w.high));
      let manual = this.window.querySelector("[data-manual]");
      if (named >= 0) {
        manual?.remove();
        this.window.value = String(named);
        return;
      }
      if (!manual) {
        manual = new Option("", "manual");
        manual.dataset.manual = "";
        manual.disabled = true;
        this.window.append(manual);
      }
      const short = (x) => String(Number(x.toPrecision(4)));
      manual.textContent = `Manual: ${short(low)} to ${short(high)}`;
      this.window.value = "manual";
    }

    setInverted(inverted) {
      this.tools.invert.setAttribute("aria-pressed", String(inverted));
      this.picture.classList.toggle("inverted", inverted);
      if (!this.niivue?.volumes.length) return;
      this.niivue.volumes[0].colormapInvert = inverted;
      this.niivue.updateGLVolume();
    }

    setOpacity() {
      if (!(this.niivue?.volumes.length > 1)) return;
      this.niivue.volumes[1].opacity = Number(this.opacity.value) / 100;
      this.drawOverlay();
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

    say(text) {
      this.where.textContent = text;
    }
  }

  window.radfmViewer = (element, props, trigger, watch) => {
    const viewer = new Viewer(element, trigger);
    element.viewer = viewer;
    watch("value", () => viewer.show(props.value));
    if (props.value) viewer.show(props.value);
  };
})();
