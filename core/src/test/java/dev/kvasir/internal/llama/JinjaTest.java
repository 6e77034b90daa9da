package dev.kvasir.internal.llama;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import dev.kvasir.UnsupportedModelException;
import java.io.IOException;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** llama.cpp's engine against Jinja itself, and what it says of templates that it cannot render. */
class JinjaTest {
  private static final List<ChatMessage> HELLO = List.of(new ChatMessage(ChatMessage.USER, "Hi"));

  @BeforeAll
  static void start() {
    NativeRuntime.start();
  }

  @Test
  void rendersAsJinjaDoes() throws IOException {
    JsonNode all;
    try (InputStream in = JinjaTest.class.getResourceAsStream("renderings.json")) {
      all = new ObjectMapper().readTree(in);
    }
    assertTrue(all.get("renderings").size() > 200);
    for (JsonNode one : all.get("renderings")) {
      String name = one.get("template").asText() + ", " + one.get("conversation").asText();
      Jinja jinja =
          new Jinja(one.get("source").asText(), all.get("bos").asText(), all.get("eos").asText());
      List<ChatMessage> messages = new ArrayList<>();
      for (JsonNode message : one.get("messages")) {
        messages.add(
            new ChatMessage(message.get("role").asText(), message.get("content").asText()));
      }
      if (one.get("rendered").isNull()) {
        assertThrows(UnsupportedModelException.class, () -> jinja.render(messages, false), name);
      } else {
        assertEquals(one.get("rendered").asText(), jinja.render(messages, false), name);
      }
    }
  }

  @Test
  void contentsAsListsOfParts() {
    Jinja jinja =
        new Jinja(
            "{% for m in messages %}{% for part in m.content %}{{ part.type }}:{{ part.text }}{% endfor %}{% endfor %}",
            "", "");
    assertEquals("text:Hi", jinja.render(HELLO, true));
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      quoteCharacter = '"',
      value = {
        "\"one\n{% for m in messages %}\n{{ m.content \n{% endfor %}\" | \"Expected }}\" | \"(line 4)\"",
        "\"one\ntwo\n{% frobnicate %}\" | \"Unknown statement: frobnicate\" | \"\"",
        "\"one\ntwo\n{{ 'x }}\" | \"unexpected end of input\" | \"(line 3)\"",
        "\"one\ntwo\n{{ none.x + 1 }}\" | \"Cannot perform operation + on undefined values\" | \"(line 3)\"",
        "\"one\n{{ raise_exception('no such role') }}\" | \"no such role\" | \"(line 2)\"",
      })
  void saysWhatIsWrongAndWhere(String source, String what, String where) {
    String message =
        assertThrows(
                UnsupportedModelException.class,
                () -> new Jinja(source, "", "").render(HELLO, false))
            .getMessage();
    assertTrue(message.contains(what), message);
    assertTrue(where == null || message.contains(where), message);
    assertTrue(message.indexOf('\n') < 0, message);
  }
}
