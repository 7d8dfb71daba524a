/* Gradio calls this with `element`, `props` and `watch`; the value of the component is {report, files} as JSON. */
const view = new ComparisonView(element.querySelector("section"));
watch("value", async () => {
  if (!props.value) return;
  const { report, files } = JSON.parse(props.value);
  try {
    await view.show(report, Object.fromEntries(files.map((file) => [file.orig_name, file.url])));
  } catch (error) {
    console.error(error);
    view.complain(`The result cannot be played here: ${error.message}.`);
    return;
  }
  document.querySelectorAll(".toast-close").forEach((button) => button.click()); // errors of earlier attempts
  if (document.activeElement?.id === "listen") view.playButton.focus({ preventScroll: true });
  if (view.playButton.getBoundingClientRect().bottom > innerHeight) view.root.scrollIntoView({ block: "start" });
});
