// Shows what a run used or found in a field of its node, until the next run.
import { app } from "../../../scripts/app.js";
import { ComfyWidgets } from "../../../scripts/widgets.js";

const NAME = "last run";

function textWidget(node) {
  const { widget } = ComfyWidgets.STRING(node, NAME, ["STRING", { multiline: true }], app);
  widget.element.readOnly = true;
  widget.serialize = false; // not in the saved workflow
  widget.options.serialize = false; // and not in the prompt
  return widget;
}

app.registerExtension({
  name: "DiverseVAR.LastRun",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("DiverseVAR")) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (!output.text) return;
      const text = output.text.join("\n");
      const shown = this.widgets?.find(({ name }) => name === NAME);
      if (!text) {
        if (shown) this.removeWidget(shown); // it is about the run before
        return;
      }
      (shown ?? textWidget(this)).value = text;
      const [width, height] = this.computeSize();
      this.setSize([Math.max(width, this.size[0]), Math.max(height, this.size[1])]);
    };
  },
});
