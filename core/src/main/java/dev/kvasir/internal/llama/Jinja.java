package dev.kvasir.internal.llama;

import dev.kvasir.UnsupportedModelException;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.bindings.generated.kvasir_chat_message;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.util.List;

/**
 * A Jinja template, rendered by llama.cpp's engine within the limits that native/README.md names.
 * Any thread may use it.
 *
 * @param source the template
 * @param bos the text of the beginning-of-sequence token; may be empty
 * @param eos the text of the end-of-sequence token; may be empty
 */
record Jinja(String source, String bos, String eos) {

  /**
   * Renders a conversation, up to where the assistant begins to speak.
   *
   * @param messages without a NUL in a content: the template gets C strings
   * @param typedContent contents as a list of parts: some templates know nothing else
   * @throws UnsupportedModelException if the template is malformed, refuses the messages, or takes
   *     more than it may
   */
  String render(List<ChatMessage> messages, boolean typedContent) {
    int flags =
        NativeApi.KVASIR_CHAT_GENERATION_PROMPT()
            | (typedContent ? NativeApi.KVASIR_CHAT_TYPED_CONTENT() : 0);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment array = kvasir_chat_message.allocateArray(messages.size(), arena);
      long characters = 0;
      for (int i = 0; i < messages.size(); i++) {
        MemorySegment message = kvasir_chat_message.asSlice(array, i);
        kvasir_chat_message.role(message, arena.allocateFrom(messages.get(i).role()));
        kvasir_chat_message.content(message, arena.allocateFrom(messages.get(i).content()));
        characters += messages.get(i).content().length();
      }
      MemorySegment text = arena.allocateFrom(source);
      MemorySegment begin = arena.allocateFrom(bos);
      MemorySegment end = arena.allocateFrom(eos);
      MemorySegment length = arena.allocate(NativeApi.C_LONG);
      for (long capacity = 2 * characters + 4096; ; capacity = length.get(NativeApi.C_LONG, 0)) {
        MemorySegment buffer = arena.allocate(capacity);
        int status =
            NativeApi.kvasir_chat_render(
                text, begin, end, array, messages.size(), flags, buffer, capacity, length);
        if (!NativeStatus.ok(status)) {
          throw new UnsupportedModelException(
              "The model's chat template cannot render this conversation: "
                  + NativeStatus.text(status)
                  + ". Session.complete works without it.");
        }
        if (length.get(NativeApi.C_LONG, 0) <= capacity) {
          return new String(
              buffer.asSlice(0, length.get(NativeApi.C_LONG, 0)).toArray(ValueLayout.JAVA_BYTE),
              StandardCharsets.UTF_8);
        }
      }
    }
  }
}
