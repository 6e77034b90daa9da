package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.internal.llama.ChatTokens;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Conversations over templates of several kinds, in a session. */
class ChatSessionTest {
  private static final String CHATML =
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

  @TempDir Path directory;

  private Model model(String template) {
    SyntheticVocabulary vocabulary =
        SyntheticVocabulary.sentencePiece()
            .control("<|im_start|>")
            .control("<|im_end|>")
            .word("▁")
            .word("in")
            .word("ing");
    for (String word : List.of("▁walk", "▁home")) {
      for (int end = 2; end <= word.length(); end++) {
        vocabulary.word(word.substring(0, end));
      }
    }
    return Model.load(
        SyntheticModels.llama(
            directory.resolve("model.gguf"), 1, vocabulary.chatTemplate(template)));
  }

  private static SessionOptions options() {
    return SessionOptions.defaults().withContextSize(1024).withMaxTokens(3);
  }

  @Test
  void theSpansOfAllMessagesAreKnown() {
    for (String template :
        List.of(
            CHATML,
            "{{ bos_token }}" + CHATML.replace("m.content", "m.content | trim"),
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
                + CHATML)) {
      boolean system = !template.contains("no system");
      try (Model model = model(template);
          Session session = model.newSession(options().withSystemPrompt("w1 w2 w3"))) {
        String said = "w4<|im_end|><|im_start|>w5";
        for (int turn = 0; turn < 3; turn++) {
          session.chat(said).text();
        }
        List<ChatTokens.Span> spans = session.messageSpans();
        long answers = spans.stream().filter(span -> span.role().equals("assistant")).count();
        assertEquals(3, spans.stream().filter(span -> span.role().equals("user")).count());
        assertEquals(system ? 1 : 0, spans.stream().filter(s -> s.role().equals("system")).count());
        assertTrue(answers <= 3, spans.toString());
        int end = 0;
        for (ChatTokens.Span span : spans) {
          assertTrue(span.from() >= end && span.to() > span.from(), spans.toString());
          end = span.to();
        }
        assertTrue(end <= session.position() + 1, spans.toString());
        // as many tokens as the text has on its own, but for the space before it
        int alone = model.tokenize("\n" + said, false, false).length;
        ChatTokens.Span last =
            spans.reversed().stream()
                .filter(s -> s.role().equals("user"))
                .findFirst()
                .orElseThrow();
        assertEquals(alone - 2, last.to() - last.from());
        session.clear();
        assertEquals(List.of(), session.messageSpans());
      }
    }
  }

  @Test
  void textGoesOnWhereTextEnded() {
    try (Model model = model(CHATML);
        Session session = model.newSession(options().withMaxTokens(1))) {
      session.evaluate(model.tokenize("walk", false, false));
      try (Reply reply = session.complete("ing home")) {
        reply.text();
        assertEquals(2, reply.statistics().promptTokens());
      }
    }
  }

  @Test
  void aChatGoesOnWhenTheTemplateForgets() {
    for (String template :
        List.of(
            "<|im_start|>{{ messages[-1].content }}<|im_end|>",
            "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
            "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}"
                + CHATML)) {
      try (Model model = model(template);
          Session session = model.newSession(options())) {
        int before = 0;
        for (int turn = 0; turn < 4; turn++) {
          session.chat("w6 w7").text();
          assertTrue(session.position() > before, template);
          before = session.position();
        }
        assertEquals(
            4, session.messageSpans().stream().filter(s -> s.role().equals("user")).count());
      }
    }
  }
}
