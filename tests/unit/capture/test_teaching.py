"""Which servers the BPF program is told of, and when."""

from agent.capture.teaching import MAX_TAUGHT, TEACH_NS, Teacher
from agent.hop.endpoint import Endpoint
from tests.unit.conftest import packed


def server(port, number=1):
    return 17, Endpoint(packed(f"10.244.{number // 256}.{number % 256}"), port)


class Pupil:
    def __init__(self):
        self.lessons = []

    def teach(self, servers):
        self.lessons.append(list(servers))


def test_servers_on_the_watched_ports_are_no_news():
    pupil = Pupil()
    Teacher(pupil, (53,)).teach({server(53), server(5353)}, 1)
    assert pupil.lessons == [[server(5353)]]


def test_the_same_is_not_taught_again_before_it_is_forgotten():
    pupil = Pupil()
    teacher = Teacher(pupil, (53,))
    for now_ns in (1, 2, TEACH_NS, TEACH_NS + 2):
        teacher.teach({server(5353)}, now_ns)
    assert len(pupil.lessons) == 2


def test_a_new_server_is_taught_at_once():
    pupil = Pupil()
    teacher = Teacher(pupil, (53,))
    teacher.teach({server(5353)}, 1)
    teacher.teach({server(5353), server(8053)}, 2)
    assert pupil.lessons[-1] == [server(5353), server(8053)]


def test_a_huge_cluster_does_not_fill_the_program():
    pupil = Pupil()
    Teacher(pupil, (53,)).teach({server(5353, number) for number in range(MAX_TAUGHT + 9)}, 1)
    assert [len(lesson) for lesson in pupil.lessons] == [MAX_TAUGHT]
