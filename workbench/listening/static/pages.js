/* The pages around the trials: welcome, questionnaire, level, instructions, finish. Each gives an element. */
const Pages = {
  welcome(study, begin) {
    const card = block("section", "card", make("h1", "", study.title));
    card.append(make("p", "quiet", `A listening test (${study.method_label}) for your ears and your browser.`));
    if (study.consent) card.append(block("div", "consent", ...paragraphs(study.consent)));
    const error = make("p", "error");
    error.setAttribute("role", "alert");
    const button = makeButton("primary", study.consent ? "I agree, begin" : "Begin", async () => {
      button.disabled = true; // a second press would make a second listener
      error.textContent = "";
      try {
        await begin();
      } catch (failure) {
        error.textContent = `${failure.message}. Please try again.`;
        button.disabled = false;
      }
    });
    card.append(block("div", "go", error, button));
    return card;
  },

  questionnaire(study, submit) {
    const form = make("form", "card questions");
    form.noValidate = true;
    const fields = study.questionnaire.map((question, index) => Pages._question(question, index));
    const error = make("p", "error");
    error.setAttribute("role", "alert");
    const next = make("button", "primary", "Next");
    next.type = "submit";
    form.append(make("h1", "", "About you"), ...fields.map(({ element }) => element), block("div", "go", error, next));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const answers = {};
      const faults = [];
      fields.forEach(({ question, read, element }) => {
        const { value, fault } = read();
        element.classList.toggle("wrong", Boolean(fault));
        if (fault) faults.push(fault);
        else if (value !== null) answers[question.name] = value;
      });
      error.textContent = faults[0] ?? "";
      if (!faults.length) submit(answers);
    });
    return form;
  },

  _question(question, index) {
    const element = make("fieldset");
    element.append(block("legend", "", question.text, question.is_required ? make("span", "required", " required") : null));
    const missing = (value) => (question.is_required && value === null ? "Please answer the marked questions." : "");
    if (question.options.length) {
      const options = make("div", `options ${question.kind}`);
      question.options.forEach((option, k) => {
        const input = make("input");
        Object.assign(input, { type: "radio", name: `question-${index}`, value: String(k) });
        options.append(block("label", "option", input, make("span", "", option)));
      });
      element.append(options);
      const read = () => {
        const chosen = options.querySelector("input:checked");
        const value = chosen ? question.options[Number(chosen.value)] : null;
        return { value, fault: missing(value) };
      };
      return { question, element, read };
    }
    const input = make(question.kind === "long_text" ? "textarea" : "input");
    if (question.kind === "number") Object.assign(input, { type: "number", inputMode: "decimal", step: "any" });
    else input.maxLength = 4000;
    input.setAttribute("aria-label", question.text);
    element.append(input);
    const read = () => {
      const text = input.value.trim();
      if (question.kind !== "number") return { value: text || null, fault: missing(text || null) };
      if (input.validity.badInput) return { value: null, fault: "Please enter a number." };
      const value = text ? Number(text) : null;
      const { minimum, maximum } = question;
      const isOutside = value !== null && (value < minimum || value > maximum);
      return { value, fault: isOutside ? `Please enter a number from ${minimum} to ${maximum}.` : missing(value) };
    };
    return { question, element, read };
  },

  /** Speech of the test itself, looped, so that the level is right for what comes. */
  level(loadSpeech, done) {
    const card = make("section", "card level");
    let player = null;
    const play = makeButton("play", "", async () => {
      if (!player) {
        play.disabled = true;
        player = await loadSpeech();
        play.disabled = false;
        player.onchange = show;
      }
      if (player.isPlaying) player.pause();
      else player.play();
      next.disabled = false;
    });
    const show = () => {
      play.replaceChildren(icon(player?.isPlaying ? "pause" : "play"));
      play.setAttribute("aria-label", player?.isPlaying ? "Pause" : "Play");
    };
    const next = makeButton("primary", "The volume is set", () => {
      if (player?.isPlaying) player.pause();
      done();
    });
    next.disabled = true;
    show();
    card.append(
      make("h1", "", "Set the volume"),
      make("p", "", "Play this and set the volume of your device so that speech is clear and comfortable, as loud as somebody who talks to you across a table."),
      block("div", "center", play),
      make("p", "quiet", "Please leave the volume, and what you listen with, unchanged until the end."),
      block("div", "go", next),
    );
    return card;
  },

  instructions(study, plan, begin) {
    const count = (kind) => plan.filter((trial) => trial.kind === kind).length;
    const card = block("section", "card", make("h1", "", "How it works"), ...paragraphs(study.instructions));
    const steps = make("ol", "steps");
    const sentences = {
      mushra: [
        "Press a letter to hear that sound; all sounds run in step, so you can switch in the middle of a word.",
        "Move the scale of the sound that plays. Scales of the others are locked until you hear them.",
        "Click on the waveform to go there, drag over it to repeat a part.",
      ],
      abx: ["Hear A, B and X in any order, as often as you like.", "X is exactly one of the other two. Say which; if you cannot tell, guess."],
      ab: ["Hear the sounds in any order, as often as you like.", "Say which one you prefer."],
      acr: ["Listen to the whole sound.", "Say how good it is. There is no right answer."],
    }[study.method];
    sentences.forEach((sentence) => steps.append(make("li", "", sentence)));
    const training = count("training");
    const pages = `${count("test")} pages${training ? `, after ${training} for training that ${training > 1 ? "are" : "is"} not counted` : ""}`;
    card.append(
      steps,
      make("p", "quiet", `${pages}. Everything you do is saved at once: you can close this page and come back in this browser.`),
      block("div", "go", makeButton("primary", training ? "Start the training" : "Start", begin)),
    );
    return card;
  },

  finish(done) {
    const comment = make("textarea");
    comment.rows = 4;
    comment.maxLength = 4000;
    comment.setAttribute("aria-label", "Remarks on the whole test");
    const state = make("p", "quiet");
    state.setAttribute("role", "status");
    const button = makeButton("primary", "Finish", async () => {
      button.disabled = true;
      state.textContent = "Sending what is left …";
      await done(comment.value.trim(), (text) => (state.textContent = text));
    });
    return block(
      "section",
      "card",
      make("h1", "", "That was the last page"),
      make("p", "", "Is there anything you would like to tell us?"),
      comment,
      block("div", "go", state, button),
    );
  },

  message(title, ...texts) {
    return block("section", "card", make("h1", "", title), ...texts.map((text) => make("p", "", text)));
  },
};
