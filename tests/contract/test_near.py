"""Which jobs begin alike."""

from dataclasses import replace

from worker.contract.job import ChatRequest, MediaRef, Message
from worker.contract.near import near_of

CAT = MediaRef("image", "images[0]", url="https://example.com/cat.png")
DOG = MediaRef("image", "images[0]", url="https://example.com/dog.png")


def asked(*texts: str, system: str = "", model: str = "m") -> ChatRequest:
    """Return a conversation: the user's turns and the answers between them, in turn."""
    turns = [Message("system", (system,))] if system else []
    for number, text in enumerate(texts):
        turns.append(Message("assistant" if number % 2 else "user", (text,)))
    return ChatRequest(model, tuple(turns))


def about(medium: MediaRef, *texts: str, before: str = "") -> ChatRequest:
    """Return a conversation whose first turn has a medium, and perhaps words in front of it."""
    first, *later = asked(*texts).messages
    parts = (before, 0, *first.parts) if before else (0, *first.parts)
    return ChatRequest("m", (replace(first, parts=parts), *later), (medium,))


def test_a_follow_up_begins_as_its_conversation_does():
    first = near_of(asked("hello", system="be brief"))

    assert near_of(asked("hello", "hi", "and now?", system="be brief")) == first
    assert near_of(asked("hello", "hi", "and now?", "no", "why?", system="be brief")) == first


def test_every_question_after_a_picture_begins_with_it():
    first = near_of(about(CAT, "what is it?"))

    assert near_of(about(CAT, "how many?")) == first
    assert near_of(about(CAT, "what is it?", "a cat", "how old?")) == first


def test_a_place_in_the_request_is_no_part_of_a_picture():
    moved = replace(CAT, param="messages[0].content[1]")

    assert near_of(about(moved, "what is it?")) == near_of(about(CAT, "what is it?"))


def test_pictures_behind_the_first_do_not_count():
    one = about(CAT, "what is it?")
    more = Message("user", (1, "and this?"))
    two = replace(one, messages=(*one.messages, Message("assistant", ("a cat",)), more))

    assert near_of(replace(two, media=(CAT, DOG))) == near_of(one)


def test_a_picture_in_a_later_turn_counts_with_all_before_it():
    later = Message("user", (0, "and this?"))

    def then(text: str) -> ChatRequest:
        return ChatRequest("m", (*asked(text, "hi").messages, later), (CAT,))

    assert near_of(then("hello")) == near_of(then("hello"))
    assert near_of(then("hello")) != near_of(then("good evening"))
    assert near_of(then("hello")) != near_of(replace(then("hello"), media=(DOG,)))


def test_whatever_differs_at_the_beginning_is_another_one():
    variants = [
        asked("hello"),
        asked("hello", model="n"),
        asked("good evening"),
        asked("hello", system="be brief"),
        asked("hello", system="be long"),
        about(CAT, "hello"),
        about(DOG, "hello"),
        about(CAT, "hello", before="look: "),
        about(replace(CAT, type="video"), "hello"),
        about(replace(CAT, url=None, object_key=CAT.url), "hello"),
        about(replace(CAT, url=None, object_key="media/sha256/1"), "hello"),
    ]

    hashes = [near_of(variant) for variant in variants]

    assert len(set(hashes)) == len(variants)
    assert {len(each) for each in hashes} == {16}


def test_a_conversation_without_a_users_turn_has_one_as_well():
    assert near_of(ChatRequest("m", (Message("system", ("be brief",)),)))
