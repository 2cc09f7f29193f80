import subprocess
import sys


def test_importing_opens_no_socket_and_nothing_heavy():
    program = """
import sys, socket
def refuse(*arguments, **settings):
    raise AssertionError("a socket was opened")
socket.socket.connect = refuse
socket.create_connection = refuse
import afv_metric
heavy = {"matplotlib", "torchvision", "huggingface_hub", "scipy", "lpips", "sklearn"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_everything_public_is_documented():
    import afv_metric

    for name in afv_metric.__all__:
        assert getattr(afv_metric, name).__doc__
