/* The researcher's page: list of studies, a new study, one study. The token stays in this tab. */
class Admin {
  static REFRESH_MS = 3000;
  static EXAMPLE = `preset = "bs1534-3-strict"
name = "first-test"
title = "Speech at a few hundred bits per second"
is_strict = false                  # true refuses what BS.1534-3 does not allow

items = "clips"                    # a folder of recordings, uploaded below
systems = ["taae 2x5^6", "taae 1x6^6", "codec2 700C"]
`;

  constructor() {
    this.main = document.getElementById("main");
    this.state = document.getElementById("state");
    const given = /^#token=([\w-]{16,200})$/.exec(location.hash);
    if (given) {
      sessionStorage.setItem("listening:admin", given[1]);
      history.replaceState(null, "", location.pathname); // out of the address bar and the history
    }
    this.token = sessionStorage.getItem("listening:admin");
    addEventListener("hashchange", () => this.show());
    addEventListener("unhandledrejection", ({ reason }) => this._onError(reason));
    setInterval(() => document.visibilityState === "visible" && this.view?.update().catch((error) => this._onError(error)), Admin.REFRESH_MS);
  }

  async show() {
    this.view = null;
    this.say("");
    if (!this.token) return this._login();
    const id = location.hash.slice(1);
    try {
      if (id === "new") return await this._new();
      const view = id ? new StudyView(this, id) : new StudyList(this);
      await view.update();
      this.view = view;
      this.main.replaceChildren(view.element);
    } catch (error) {
      this._onError(error);
    }
  }

  // Requests

  async get(path) {
    return (await request("GET", path, { admin: this.token })).json();
  }

  async post(path, json) {
    return (await request("POST", path, { admin: this.token, json, seconds: 300 })).json();
  }

  async remove(path) {
    return (await request("DELETE", path, { admin: this.token })).json();
  }

  async download(path, name) {
    const response = await request("GET", path, { admin: this.token, seconds: 300 });
    const link = make("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  // Talking

  say(text, isError = false) {
    this.state.textContent = text;
    this.state.className = isError ? "saved waiting" : "saved";
  }

  _onError(error) {
    if (error?.status === 401) {
      sessionStorage.removeItem("listening:admin");
      this.token = null;
      this._login("That is not the token.");
    } else {
      console.error(error);
      this.say(error?.message ?? String(error), true);
    }
  }

  /** Asks for a word, or for yes; gives "" if the answer is no. */
  ask(title, text, label = "") {
    const dialog = make("dialog", "card");
    const input = make("input");
    input.setAttribute("aria-label", label);
    input.placeholder = label;
    const yes = makeButton("primary", "Yes", () => dialog.close(label ? input.value.trim() : "yes"));
    const buttons = block("div", "go", makeButton("soft", "Cancel", () => dialog.close("")), yes);
    dialog.append(make("h2", "", title), make("p", "", text), ...(label ? [input] : []), buttons);
    document.body.append(dialog);
    dialog.showModal();
    return new Promise((resolve) => {
      dialog.addEventListener("close", () => {
        resolve(dialog.returnValue);
        dialog.remove();
      });
    });
  }

  _login(message = "") {
    const input = make("input");
    Object.assign(input, { type: "password", autocomplete: "off" });
    input.setAttribute("aria-label", "Admin token");
    const form = block(
      "form",
      "card",
      make("h1", "", "Listening tests"),
      make("p", "", "The admin token was printed when the server started, or set in TAAE_ADMIN_TOKEN."),
      input,
      block("div", "go", make("p", "error", message), makeButton("primary", "Enter", () => enter())),
    );
    const enter = () => {
      this.token = input.value.trim();
      if (!this.token) return;
      sessionStorage.setItem("listening:admin", this.token);
      this.show();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      enter();
    });
    this.view = null;
    this.main.replaceChildren(form);
    input.focus();
  }

  async _new() {
    const { presets, sounds } = await this.get("/api/admin/overview");
    const text = make("textarea", "code");
    Object.assign(text, { rows: 14, spellcheck: false, value: Admin.EXAMPLE });
    text.setAttribute("aria-label", "Study file");
    const error = make("p", "error");
    error.setAttribute("role", "alert");
    const create = makeButton("primary", "Create", async () => {
      error.textContent = "";
      create.disabled = true;
      try {
        const isYaml = /^\s*[\w-]+\s*:/m.test(text.value) && !/^\s*[\w-]+\s*=/m.test(text.value);
        const type = isYaml ? "application/yaml" : "application/toml";
        const response = await request("POST", "/api/admin/studies", { admin: this.token, body: text.value, type });
        location.hash = (await response.json()).id;
      } catch (failure) {
        error.textContent = failure.message;
        create.disabled = false;
      }
    });
    const file = make("input");
    Object.assign(file, { type: "file", accept: ".toml,.yaml,.yml" });
    file.setAttribute("aria-label", "Study file from disk");
    file.addEventListener("change", async () => (text.value = await file.files[0].text()));
    this.main.replaceChildren(
      block("div", "head", block("div", "titles", make("h1", "", "New study"), make("p", "quiet", "A study file in TOML or YAML, or one of webMUSHRA."))),
      block(
        "section",
        "panel",
        text,
        make("p", "quiet", `Presets: ${presets.join(", ")}. Systems: codecs at bitrates, or { name = "mine", folder = "renders" }.`),
        file,
        block("div", "go", error, create),
      ),
      block("section", "panel", make("h2", "", "Recordings on the server"), new SoundFolders(this, sounds).element),
    );
  }
}

/** Upload of recordings, and what is there. */
class SoundFolders {
  constructor(admin, sounds) {
    this.admin = admin;
    this.list = make("div", "folders");
    this.folder = make("input");
    Object.assign(this.folder, { value: "clips", pattern: "[A-Za-z0-9][A-Za-z0-9 _.()+\\-]*" });
    this.folder.setAttribute("aria-label", "Folder");
    const files = make("input");
    Object.assign(files, { type: "file", multiple: true, accept: ".wav,.flac,.ogg,.opus,.mp3" });
    files.setAttribute("aria-label", "Recordings");
    files.addEventListener("change", () => this._upload([...files.files]));
    this.state = make("p", "quiet");
    this.state.setAttribute("role", "status");
    this.element = block("div", "uploads", block("div", "upload", block("label", "", "Into folder ", this.folder), files), this.state, this.list);
    this._show(sounds);
  }

  _show(sounds) {
    const entries = Object.entries(sounds);
    this.list.replaceChildren(
      ...(entries.length ? entries.map(([name, files]) => block("p", "", make("strong", "", `${name} `), `${files.length} ${files.length === 1 ? "file" : "files"}: ${files.join(", ")}`)) : [make("p", "quiet", "None yet.")]),
    );
  }

  async _upload(files) {
    const faults = [];
    for (const [k, file] of files.entries()) {
      this.state.textContent = `Sending ${file.name} (${k + 1} of ${files.length})`;
      const path = `/api/admin/sounds/${encodeURIComponent(this.folder.value)}/${encodeURIComponent(file.name)}`;
      try {
        await request("PUT", path, { admin: this.admin.token, body: file, type: "application/octet-stream", seconds: 600 });
      } catch (error) {
        faults.push(`${file.name}: ${error.message}`);
      }
    }
    this.state.textContent = faults.length ? faults.join("; ") : `${files.length} sent.`;
    this.state.className = faults.length ? "error" : "quiet";
    this._show((await this.admin.get("/api/admin/overview")).sounds);
  }
}

class StudyList {
  constructor(admin) {
    this.admin = admin;
    this.grid = make("div", "studies");
    const create = make("a", "primary link-button", "New study");
    create.href = "#new";
    const backup = makeButton("soft", "Backup", () => admin.download("/api/admin/backup", "listening-backup.sqlite"));
    this.element = block("section", "", block("div", "head", block("div", "titles", make("h1", "", "Listening tests")), block("div", "buttons", backup, create)), this.grid);
  }

  async update() {
    const { studies } = await this.admin.get("/api/admin/overview");
    if (!studies.length) return this.grid.replaceChildren(make("p", "quiet empty", "No study yet. A first one takes five minutes."));
    this.grid.replaceChildren(...studies.map((study) => this._card(study)));
  }

  _card(study) {
    const card = make("a", "panel study-card");
    card.href = `#${study.id}`;
    const simulated = study.num_simulated ? ` · ${study.num_simulated} SIMULATED` : "";
    const rendering = study.job && ["waiting", "running"].includes(study.job.state) ? ` · rendering ${Math.round(100 * study.job.fraction)} %` : "";
    card.append(
      block("div", "card-top", make("h2", "", study.title), make("span", `status ${study.status}`, study.status)),
      make("p", "quiet", `${study.id} · ${study.method}${rendering}`),
      make("p", "", `${study.num_finished} of ${study.num_joined} listeners finished${simulated}`),
    );
    return card;
  }
}

new Admin().show();
