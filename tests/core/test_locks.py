import os
import subprocess
import sys
import time

from compressor.core.locks import MachineLock, held


def test_shares_coexist_and_nest(tmp_path):
    one, two = MachineLock(tmp_path / "l"), MachineLock(tmp_path / "l")
    with one.share(), one.share(), two.share():
        pass


def test_measuring_alone_gives_its_own_share_back_meanwhile(tmp_path):
    lock = MachineLock(tmp_path / "l", patience=0)
    with lock.share():
        with lock.alone() as note:
            assert note == ""
        other = MachineLock(tmp_path / "l", patience=0)
        with other.alone() as note:  # the share is held again
            assert "another process" in note


def test_a_measurement_that_waited_goes_on_and_names_the_holder(tmp_path):
    holder, lock = MachineLock(tmp_path / "l"), MachineLock(tmp_path / "l", patience=0.3)
    with holder.share():
        began = time.monotonic()
        with lock.alone() as note:
            assert time.monotonic() - began >= 0.3
    assert "trains or measures" in note


def test_a_killed_holder_releases_at_once(tmp_path):
    path = tmp_path / "k.lock"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom compressor.core.locks import held\n"
        "with held(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    waited = []
    child.kill()
    child.wait()
    child.stdout.close()
    with held(path, lambda: waited.append(1)):
        assert os.path.exists(path)


def test_waiting_is_told_once(tmp_path):
    import threading

    path, told = tmp_path / "k", []
    inside = threading.Event()

    def second():
        with held(path, lambda: (told.append(1), inside.set())):
            pass

    with held(path):
        thread = threading.Thread(target=second)
        thread.start()
        assert inside.wait(5)
    thread.join(5)
    assert told == [1]
