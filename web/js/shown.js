// Shows what a run used or found, and its error, in a box of the node; notes and errors in a toast.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const NAME = "last run";
const MARGIN = 6;

function textBox(node) {
  const box = document.createElement("div");
  const text = document.createElement("div");
  text.style.cssText =
    "white-space: pre-wrap; overflow-wrap: anywhere; user-select: text; padding: 4px 6px; " +
    "border-radius: 4px; font: 11px/1.35 sans-serif; max-height: 150px; overflow-y: auto; " +
    "color: var(--input-text); background: var(--comfy-input-bg)";
  box.append(text);
  let height = 20; // of the text when it was last visible, as a small node hides it
  const widget = node.addDOMWidget(NAME, "DIVERSEVAR_TEXT", box, {
    serialize: false, // not in the prompt
    margin: MARGIN,
    getMinHeight: () => height + 2 * MARGIN,
    getMaxHeight: () => height + 2 * MARGIN,
    getValue: () => text.textContent,
    setValue: (value) => (text.textContent = value),
  });
  widget.serialize = false; // and not in the saved workflow
  new ResizeObserver(() => {
    if (!text.offsetHeight || text.offsetHeight === height) return;
    height = text.offsetHeight;
    const [width, least] = node.computeSize();
    node.setSize([Math.max(width, node.size[0]), Math.max(least, node.size[1])]);
  }).observe(text);
  return widget;
}

function show(node, output) {
  if (!node?.type.startsWith("DiverseVAR") || !output?.text) return;
  const lines = new Set(output.text.join("\n").split("\n")); // a list of prompts repeats them
  const text = [...lines].join("\n");
  const shown = node.widgets?.find(({ name }) => name === NAME);
  if (text) (shown ?? textBox(node)).value = text;
  else if (shown) node.removeWidget(shown); // it is about the run before
}

// a key is the node's number, in a subgraph after the subgraph's own and a colon
function showAll(outputs) {
  for (const [key, output] of Object.entries(outputs ?? {})) {
    const [id, subgraph] = key.split(":").reverse();
    const graph = subgraph ? app.rootGraph.subgraphs.get(subgraph) : app.rootGraph;
    show(graph?.getNodeById(id), output);
  }
}

const TITLE = "DiverseVAR";
const LIFE = 20000;
const toasts = new Map(); // of this run: text -> what closes it
const failed = new Set(); // nodes that show its error

function openToast(detail, severity) {
  const { toast } = app.extensionManager;
  if (toast.dismiss) {
    const id = toast[severity](TITLE, { description: detail, duration: LIFE });
    return () => toast.dismiss(id);
  }
  const message = { severity, summary: TITLE, detail, life: LIFE }; // an older page
  toast.add(message);
  return () => toast.remove(message);
}

function tell(notes, severity = "info") {
  const text = [...new Set(notes)].join("\n");
  if (!text) return;
  toasts.get(text)?.(); // the sampler repeats it, after the first is gone if it took long
  toasts.set(text, openToast(text, severity));
}

function begin() {
  toasts.forEach((close) => close());
  toasts.clear();
  failed.forEach((node) => show(node, { text: [] }));
  failed.clear();
}

// An older page puts toasts over its own words on an error.
function keepErrorFree() {
  const style = document.createElement("style");
  style.textContent =
    "body:has([data-testid=error-overlay]) .p-toast-top-right { margin-top: 190px }";
  document.head.append(style);
}

// The page says of every error that a node threw one, and what it was two clicks later.
function tellError({ detail: { node_id, exception_type, exception_message } }) {
  if (!/\.diversevar_core\..*Error$/.test(exception_type)) return;
  const nodeIn = (outer, id) => (outer ? outer.subgraph : app.rootGraph).getNodeById(id);
  const node = String(node_id).split(":").reduce(nodeIn, null);
  show(node, { text: [exception_message.trim()] });
  failed.add(node);
  tell([exception_message.trim()], "error");
}

app.registerExtension({
  name: "DiverseVAR.LastRun",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("DiverseVAR")) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      show(this, output);
      tell(output?.notes ?? []);
    };
  },
  setup() {
    keepErrorFree();
    api.addEventListener("execution_start", begin);
    api.addEventListener("execution_error", tellError);
  },
  onNodeOutputsUpdated: showAll, // another tab
  afterConfigureGraph: () => showAll(app.nodeOutputs), // undo
});
