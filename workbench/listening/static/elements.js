/* Elements, icons and requests. Words from outside go through textContent, never through markup. */

const ICONS = {
  play: "M7 4v16l13-8z",
  pause: "M6 4h4.5v16H6zM13.5 4H18v16h-4.5z",
  check: "M4.5 12.5l5 5L20 7",
};

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  return element;
}

/** `children` are elements or texts. */
function block(tag, className, ...children) {
  const element = make(tag, className);
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

function makeButton(className, text, onclick) {
  const button = make("button", className, text);
  button.type = "button";
  button.addEventListener("click", onclick);
  return button;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  svg.classList.add("icon", `icon-${name}`);
  return svg;
}

/** Paragraphs of a text with empty lines between them. */
function paragraphs(text, className = "") {
  return text.split(/\n\s*\n/).map((part) => make("p", className, part.trim()));
}

function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(1).padStart(4, "0")}`;
}

/** 128 random bits; crypto.randomUUID does not exist on plain http. */
function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

class HttpError extends Error {
  constructor(status, detail, retryAfterSeconds = 0) {
    super(detail);
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/**
 * @param {string} method
 * @param {string} path
 * @param {{token?: string, admin?: string, json?: object, body?: BodyInit, type?: string, keepalive?: boolean}} options
 * @returns {Promise<Response>}
 * @throws {HttpError} if the server says no
 * @throws {TypeError} if it cannot be reached within 30 s
 */
async function request(method, path, { token, admin, json, body, type, keepalive = false, seconds = 30 } = {}) {
  const headers = { "X-Listening": "1" };
  if (token) headers["X-Session"] = token;
  if (admin) headers.Authorization = `Bearer ${admin}`;
  if (json !== undefined) [body, type] = [JSON.stringify(json), "application/json"];
  if (type) headers["Content-Type"] = type;
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), 1000 * seconds);
  try {
    const response = await fetch(path, { method, headers, body, keepalive, signal: stop.signal, credentials: "omit" });
    if (response.ok) return response;
    const detail = await response.json().then(
      (answer) => (typeof answer.detail === "string" ? answer.detail : response.statusText),
      () => response.statusText,
    );
    throw new HttpError(response.status, detail, Number(response.headers.get("Retry-After")) || 0);
  } catch (error) {
    if (error.name === "AbortError") throw new TypeError("the server does not answer");
    throw error;
  } finally {
    clearTimeout(timer);
  }
}
