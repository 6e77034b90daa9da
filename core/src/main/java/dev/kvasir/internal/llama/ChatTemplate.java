package dev.kvasir.internal.llama;

import dev.kvasir.UnsupportedModelException;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.bindings.generated.kvasir_chat_message;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * A model's chat format. The model's own Jinja template is rendered where libllama-common is at
 * hand, otherwise llama.cpp recognises it among its built-in ones. Any thread may use it while its
 * model lives.
 */
public final class ChatTemplate {
  // A text that no template treats in a special way and no conversation contains.
  private static final String SENTINEL = "kvasir7sentinel";

  private final MemorySegment model;
  private final String source;

  ChatTemplate(MemorySegment model, String source) {
    this.model = model;
    this.source = source;
  }

  /** The template's own text. */
  public String source() {
    return source;
  }

  /**
   * What a conversation that ends with a user message looks like, up to where the assistant begins
   * to speak.
   *
   * @throws UnsupportedModelException if the template cannot be rendered
   */
  public String opening(List<ChatMessage> messages) {
    return render(messages, true);
  }

  /**
   * What follows in a conversation after the assistant's last words: the end of its turn, the new
   * message, and the start of its next turn. What the assistant really said stands in the cache and
   * is not rendered again, so that a template that rewrites it does no harm.
   *
   * @param history ends with the assistant's message
   * @throws UnsupportedModelException if the template cannot be rendered
   */
  public String continuation(List<ChatMessage> history, ChatMessage next) {
    List<ChatMessage> messages = new ArrayList<>(history.subList(0, history.size() - 1));
    messages.add(new ChatMessage(ChatMessage.ASSISTANT, SENTINEL));
    messages.add(next);
    String text = render(messages, true);
    int at = text.lastIndexOf(SENTINEL);
    if (at < 0) {
      throw new UnsupportedModelException(
          "The model's chat template leaves out what the assistant said, so that a conversation cannot be continued. Use Session.complete instead.");
    }
    return text.substring(at + SENTINEL.length());
  }

  /**
   * The token sequences that the template puts around messages, each from one control token up to
   * the next. Single tokens are left out: a control token is special anyway, and a lone line break
   * is no marker.
   */
  public int[][] markers(Vocabulary vocabulary) {
    List<ChatMessage> conversation = new ArrayList<>();
    for (String role :
        List.of(ChatMessage.SYSTEM, ChatMessage.USER, ChatMessage.ASSISTANT, ChatMessage.USER)) {
      conversation.add(new ChatMessage(role, SENTINEL));
    }
    String text;
    try {
      // With a system message: without one some templates put in words of their own.
      text = render(conversation, true);
    } catch (UnsupportedModelException e) {
      try {
        text = render(conversation.subList(1, conversation.size()), true);
      } catch (UnsupportedModelException noTemplate) {
        return new int[0][];
      }
    }
    List<int[]> markers = new ArrayList<>();
    addMarkers(text, vocabulary, markers);
    return markers.toArray(int[][]::new);
  }

  private static void addMarkers(String text, Vocabulary vocabulary, List<int[]> markers) {
    for (String part : text.split(SENTINEL, -1)) {
      int[] tokens = vocabulary.tokenize(part, false, true);
      int start = 0;
      for (int i = 1; i <= tokens.length; i++) {
        if (i == tokens.length || vocabulary.isControl(tokens[i])) {
          addMarker(Arrays.copyOfRange(tokens, start, i), vocabulary, markers);
          start = i;
        }
      }
    }
  }

  private static void addMarker(int[] tokens, Vocabulary vocabulary, List<int[]> markers) {
    boolean blank = true;
    for (int token : tokens) {
      blank &= vocabulary.textOf(token).isBlank();
    }
    if (tokens.length > 1
        && !blank
        && markers.stream().noneMatch(known -> Arrays.equals(known, tokens))) {
      markers.add(tokens);
    }
  }

  private String render(List<ChatMessage> messages, boolean addAssistant) {
    NativeLog.clearErrors();
    boolean jinja = NativeApi.kvasir_chat_has_jinja() != 0;
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment array = kvasir_chat_message.allocateArray(messages.size(), arena);
      long characters = 0;
      for (int i = 0; i < messages.size(); i++) {
        MemorySegment message = kvasir_chat_message.asSlice(array, i);
        kvasir_chat_message.role(message, arena.allocateFrom(messages.get(i).role()));
        kvasir_chat_message.content(message, arena.allocateFrom(messages.get(i).content()));
        characters += messages.get(i).content().length();
      }
      MemorySegment template = arena.allocateFrom(source);
      long capacity = Math.min(Integer.MAX_VALUE - 8, 2 * characters + 4096);
      for (; ; ) {
        MemorySegment buffer = arena.allocate(capacity);
        long length =
            jinja
                ? renderJinja(array, messages.size(), addAssistant, buffer, arena)
                : renderBuiltIn(template, array, messages.size(), addAssistant, buffer);
        if (length <= capacity) {
          return new String(
              buffer.asSlice(0, length).toArray(ValueLayout.JAVA_BYTE), StandardCharsets.UTF_8);
        }
        capacity = length;
      }
    }
  }

  private long renderJinja(
      MemorySegment messages, int count, boolean addAssistant, MemorySegment buffer, Arena arena) {
    MemorySegment length = arena.allocate(ValueLayout.JAVA_LONG);
    int status =
        NativeApi.kvasir_chat_apply(
            model, messages, count, addAssistant ? 1 : 0, buffer, buffer.byteSize(), length);
    if (!NativeStatus.ok(status)) {
      throw new UnsupportedModelException(
          "The model's chat template cannot render this conversation: "
              + NativeStatus.reason(status)
              + ". Session.complete works without it.");
    }
    return length.get(ValueLayout.JAVA_LONG, 0);
  }

  private static long renderBuiltIn(
      MemorySegment template,
      MemorySegment messages,
      int count,
      boolean addAssistant,
      MemorySegment buffer) {
    int length =
        NativeApi.llama_chat_apply_template(
            template, messages, count, addAssistant, buffer, (int) buffer.byteSize());
    if (length < 0) {
      throw new UnsupportedModelException(
          "The model's chat template is none of those that llama.cpp has built in. Session.complete works without it.");
    }
    return length;
  }
}
