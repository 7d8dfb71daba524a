/* Gradio calls this with `element`, `props`, `trigger` and `upload`; the value of the component is a file on the server. */
const tell = (file) => {
  props.value = JSON.stringify(file && { ...file, meta: { _type: "gradio.FileData" } });
  trigger("file");
};
const card = new SourceCard(
  element.querySelector("section"),
  props.options,
  async (file) => {
    tell(null); // so that the previous recording is not taken for this one
    const { path, url } = await upload(file);
    tell({ path, url, orig_name: file.name, size: file.size });
  },
  (example) => tell({ path: example.path, orig_name: example.title }),
);
card.chooseExample(props.options.examples[0]);
