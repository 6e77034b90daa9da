package dev.kvasir.internal.llama;

import dev.kvasir.TokenizationException;
import dev.kvasir.UnsupportedModelException;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * A model's chat format. Any thread may use it while its model lives.
 *
 * <p>A template is rendered blind first: with placeholders for what was said. What stands around
 * them is the template's, whatever the messages hold, and nothing else may become control tokens.
 * core/README.md describes the method.
 */
public final class ChatTemplate {
  /** Contents, in characters, beyond which a template gets placeholders alone. */
  private static final int SHOWN_CHARACTERS = 64 * 1024;

  private final Jinja jinja;
  private final Vocabulary vocabulary;

  ChatTemplate(Jinja jinja, Vocabulary vocabulary) {
    this.jinja = jinja;
    this.vocabulary = vocabulary;
  }

  /** The template's own text. */
  public String source() {
    return jinja.source();
  }

  /**
   * What a conversation that ends with a user message looks like, up to where the assistant begins
   * to speak.
   *
   * @param begins whether it begins the sequence, or the token before it is a special one
   * @throws UnsupportedModelException if the template cannot be rendered, or leaves out what the
   *     user said
   */
  public ChatTokens opening(List<ChatMessage> messages, boolean begins) {
    Frame frame = frame(messages);
    ChatText text = frame.text();
    if (shows(frame.messages())) {
      text = seen(frame, frame.messages(), text, 0);
    }
    return ChatTokenizer.split(text, roles(frame.messages()), vocabulary, begins);
  }

  /**
   * What follows in a conversation after the assistant's last words: the end of its turn, the new
   * message, and the start of its next turn. What the assistant really said stands in the cache and
   * is not rendered again, so that a template that rewrites it does no harm.
   *
   * @param history ends with the assistant's message
   * @param begins whether the token before it is a special one
   * @throws UnsupportedModelException if the template cannot be rendered, or leaves out what the
   *     user said
   */
  public ChatTokens continuation(List<ChatMessage> history, ChatMessage next, boolean begins) {
    List<ChatMessage> messages = new ArrayList<>(history);
    ChatMessage said = messages.removeLast();
    // Templates ask whether there is a content: a turn that is there is one that was said.
    messages.add(said.content().isEmpty() ? new ChatMessage(said.role(), ".") : said);
    messages.add(next);
    Frame frame = frameOfContinuation(messages);
    int last = frame.messages().size() - 1;
    int from = endOfHistory(frame.text(), last);
    ChatText text = frame.text().from(from);
    if (from == 0 || frame.text().parts().get(from - 1).message() != last - 1) {
      text = endingTurn(text, messages.subList(0, messages.size() - 2));
    }
    if (shows(List.of(next))) {
      text = seen(frame, List.of(frame.messages().get(last)), text, from);
    }
    return ChatTokenizer.split(text, roles(frame.messages()), vocabulary, begins);
  }

  /**
   * The token sequences that the template puts around messages, each from one control token up to
   * the next. Single tokens are left out: a control token is special anyway, and a lone line break
   * is no marker. None for a template that cannot be rendered.
   */
  int[][] markers() {
    List<ChatMessage> conversation = new ArrayList<>();
    for (String role :
        List.of(ChatMessage.SYSTEM, ChatMessage.USER, ChatMessage.ASSISTANT, ChatMessage.USER)) {
      conversation.add(new ChatMessage(role, "."));
    }
    Markers markers = new Markers(vocabulary);
    try {
      // With a system message: without one some templates put in words of their own.
      frame(conversation).text().frame().forEach(markers::add);
    } catch (UnsupportedModelException | TokenizationException e) {
      return new int[0][];
    }
    return markers.toArray();
  }

  /**
   * A blind rendering.
   *
   * @param messages that it was made of: a system message may have become a part of the user's
   * @param typed whether the template wants contents as lists
   */
  private record Frame(
      ChatText text, List<ChatMessage> messages, boolean typed, Placeholders placeholders) {
    boolean has(int message) {
      return messages.get(message).content().isEmpty()
          || text.lastOf(message, text.parts().size()) >= 0;
    }

    boolean hasAll() {
      for (int i = 0; i < messages.size(); i++) {
        if (!has(i)) {
          return false;
        }
      }
      return true;
    }
  }

  /**
   * As llama.cpp does: contents as lists where texts do not appear, and no system role but none.
   */
  private Frame frame(List<ChatMessage> messages) {
    List<List<ChatMessage>> ways = new ArrayList<>(List.of(messages));
    if (messages.size() > 1 && messages.getFirst().role().equals(ChatMessage.SYSTEM)) {
      ways.add(withoutSystem(messages));
    }
    Frame partly = null;
    UnsupportedModelException failure = null;
    for (List<ChatMessage> way : ways) {
      for (boolean typed : new boolean[] {false, true}) {
        try {
          Placeholders placeholders = new Placeholders();
          String rendered = jinja.render(placeholders.hide(way), typed);
          Frame frame = new Frame(placeholders.show(rendered, way), way, typed, placeholders);
          if (frame.hasAll()) {
            return frame;
          }
          if (partly == null && frame.has(way.size() - 1)) {
            partly = frame;
          }
        } catch (UnsupportedModelException e) {
          failure = failure == null ? e : failure;
        }
      }
    }
    if (partly != null) {
      return partly;
    }
    throw failure != null
        ? failure
        : new UnsupportedModelException(
            "The model's chat template leaves out what the user says. Use Session.complete instead.");
  }

  private static List<ChatMessage> withoutSystem(List<ChatMessage> messages) {
    List<ChatMessage> merged = new ArrayList<>(messages.subList(1, messages.size()));
    ChatMessage first = merged.getFirst();
    merged.set(
        0, new ChatMessage(first.role(), messages.getFirst().content() + "\n" + first.content()));
    return merged;
  }

  /** A template that refuses the whole conversation may take its last turns. */
  private Frame frameOfContinuation(List<ChatMessage> messages) {
    try {
      return frame(messages);
    } catch (UnsupportedModelException e) {
      int first = messages.size() - 3;
      if (first <= 0) {
        throw e;
      }
      try {
        return frame(messages.subList(first, messages.size()));
      } catch (UnsupportedModelException _) {
        throw e;
      }
    }
  }

  /**
   * The first part behind the assistant's last words. Where the template leaves these out, its turn
   * is ended by what stands between the messages around it.
   */
  private static int endOfHistory(ChatText text, int next) {
    int end = text.lastOf(next, text.parts().size());
    end = end < 0 ? text.parts().size() : end;
    for (int message = next - 1; message >= 0; message--) {
      int at = text.lastOf(message, end);
      if (at >= 0) {
        return at + 1;
      }
    }
    return 0;
  }

  /**
   * The template leaves out the assistant's words, or puts others in their place: what it writes up
   * to the end of the turn is in the cache already, or is no end.
   *
   * @param text what follows the message before the assistant's
   * @param before the messages before the assistant's
   */
  private ChatText endingTurn(ChatText text, List<ChatMessage> before) {
    if (before.isEmpty() || text.parts().isEmpty() || !text.parts().getFirst().ofTemplate()) {
      return text;
    }
    ChatText answered;
    try {
      answered = frame(before).text();
    } catch (UnsupportedModelException e) {
      return text;
    }
    ChatText.Part opened = answered.parts().getLast();
    String end = text.parts().getFirst().text();
    if (!opened.ofTemplate() || !end.startsWith(opened.text())) {
      return text;
    }
    List<TemplateTokens.Piece> pieces =
        vocabulary.special().cut(end.substring(opened.text().length()));
    int first = 0;
    while (first < pieces.size() && !pieces.get(first).control()) {
      first++;
    }
    if (first == pieces.size()) {
      first = 0;
    }
    StringBuilder rest = new StringBuilder();
    pieces.subList(first, pieces.size()).forEach(piece -> rest.append(piece.text()));
    List<ChatText.Part> parts = new ArrayList<>(text.parts());
    parts.set(0, new ChatText.Part(rest.toString(), ChatText.TEMPLATE));
    return new ChatText(parts);
  }

  /**
   * What the template makes of some of the messages when it sees them, if what it writes around
   * them is no other for that.
   *
   * @param shown the last messages of the frame
   * @param blind the frame from a part on
   */
  private ChatText seen(Frame frame, List<ChatMessage> shown, ChatText blind, int from) {
    int hidden = frame.messages().size() - shown.size();
    List<ChatMessage> messages =
        new ArrayList<>(frame.placeholders().hide(frame.messages()).subList(0, hidden));
    messages.addAll(shown);
    String rendered;
    try {
      rendered = jinja.render(messages, frame.typed());
    } catch (UnsupportedModelException e) {
      return blind;
    }
    if (from > 0) {
      ChatText text = frame.placeholders().show(rendered, frame.messages());
      int last = -1;
      for (int message = hidden - 1; message >= 0 && last < 0; message--) {
        last = text.lastOf(message, text.parts().size());
      }
      rendered = text.from(last + 1).text();
    }
    Optional<ChatText> aligned = ChatAlignment.align(blind, rendered);
    String made = rendered;
    return aligned.orElseGet(() -> rewritten(blind, made));
  }

  /**
   * A rendering in which contents cannot be told from the template: the template changed them, or
   * wrote other words for them. It holds if it has the control tokens of the blind one and no
   * others. Otherwise the blind one does, with the contents as they are.
   */
  private ChatText rewritten(ChatText blind, String rendered) {
    TemplateTokens special = vocabulary.special();
    List<Integer> controls = new ArrayList<>();
    blind.frame().forEach(part -> controls.addAll(special.controls(part)));
    if (!special.controls(rendered).equals(controls)) {
      return blind;
    }
    List<ChatText.Part> parts = new ArrayList<>();
    List<ChatText.Part> contents =
        new ArrayList<>(blind.parts().stream().filter(part -> !part.ofTemplate()).toList());
    for (TemplateTokens.Piece piece : special.cut(rendered)) {
      int from = 0;
      while (!piece.control() && !contents.isEmpty()) {
        String content = contents.getFirst().text().strip();
        int at = piece.text().indexOf(content, from);
        if (at < 0) {
          break;
        }
        parts.add(new ChatText.Part(piece.text().substring(from, at), ChatText.TEMPLATE));
        parts.add(new ChatText.Part(content, contents.removeFirst().message()));
        from = at + content.length();
      }
      parts.add(new ChatText.Part(piece.text().substring(from), ChatText.TEMPLATE));
    }
    return new ChatText(parts);
  }

  private static boolean shows(List<ChatMessage> messages) {
    long characters = 0;
    for (ChatMessage message : messages) {
      characters += message.content().length();
      if (message.content().indexOf('\0') >= 0) {
        return false;
      }
    }
    return characters <= SHOWN_CHARACTERS;
  }

  private static List<String> roles(List<ChatMessage> messages) {
    return messages.stream().map(ChatMessage::role).toList();
  }
}
