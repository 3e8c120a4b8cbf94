"""Downloads: from mirrors that work, fail, drip, lie and flood."""

import functools
import hashlib
import http.server
import itertools
import shutil
import socket
import ssl
import subprocess
import threading

import pytest
import torch

from manual_mlp.training import download
from manual_mlp.training.data import load
from manual_mlp.training.download import DownloadError
from manual_mlp.training.errors import InputError
from manual_mlp.training.published import FILES, PUBLISHED, Published
from mnist import UNPACKED, names_in

CPU = torch.device("cpu")
NAME = "train-images-idx3-ubyte.gz"  # the first to be asked for


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serve files as a good mirror does, or in one of the ways in which mirrors fail."""

    def __init__(self, files, fault, asked, over, *args):
        self.files, self.fault, self.asked, self.over = files, fault, asked, over
        super().__init__(*args)

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.asked.append(name)
        content = self.files.get(name)
        try:
            if content is None or self.fault == "not found":
                self.send_error(404)
            else:
                getattr(self, f"be_{self.fault.replace(' ', '_')}" if self.fault else "be_good")(content)
        except OSError:
            pass  # who asked has gone

    def begin(self, length):
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def be_good(self, content):
        self.begin(len(content))
        self.wfile.write(content)

    def be_without_a_length(self, content):
        self.begin(None)
        self.wfile.write(content)

    def be_another_file(self, content):
        self.be_good(b"<html>" + content)

    def be_truncated(self, content):
        self.begin(len(content))
        self.wfile.write(content[: len(content) // 2])

    def be_truncated_without_a_length(self, content):
        self.begin(None)
        self.wfile.write(content[: len(content) // 2])

    def be_stalled(self, content):
        self.over.wait(10)

    def be_dripping(self, content):
        self.begin(len(content))
        self.drip(content)

    def be_dripping_headers(self, content):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        self.drip(itertools.repeat(120))

    def be_always_about_to_begin(self, content):
        while not self.over.is_set():
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def be_endless(self, content):
        self.begin(None)
        while not self.over.is_set():
            self.wfile.write(bytes(2**16))

    def be_huge(self, content):
        self.begin(2**40)
        self.wfile.write(content)

    def be_more_than_it_says(self, content):
        self.begin(len(content) - 5)
        self.wfile.write(content)

    def be_strangely_long(self, content):
        self.begin("many")
        self.wfile.write(content)

    def be_no_server(self, content):
        self.wfile.write(b"220 mail.example ESMTP\r\n")

    def be_rude(self, content):
        self.wfile.write(b"HTTP/1.1 500 \x1b[31mNo" + b"!" * 5000 + b"\r\n\r\n")

    def be_gone(self, content):
        self.connection.shutdown(socket.SHUT_RDWR)

    def be_in_a_circle(self, content):
        self.redirect(self.path)

    def be_a_local_file(self, content):
        self.redirect("file:///etc/hostname")

    def be_nowhere(self, content):
        self.redirect(f"http://{'a' * 70}.example/")

    def be_moved(self, content):
        if "?moved" not in self.path:
            self.redirect(self.path + "?moved=/" + self.path.rpartition("/")[2])
        else:
            self.be_good(content)

    def redirect(self, target):
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    def drip(self, content):
        for byte in content:
            if self.over.wait(1e-3):
                break
            self.wfile.write(bytes((byte,)))

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """Start a mirror: its address, and the list of the files it is asked for."""
    servers, over = [], threading.Event()

    def start(files, fault=None, tls=None):
        asked = []
        handler = functools.partial(Mirror, files, fault, asked, over)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = False
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/", asked

    yield start
    over.set()
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def down():
    """Return the address of a mirror that nobody runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/"


@pytest.fixture
def publish(monkeypatch, packed):
    """Let these files, with their checksums, be published at these mirrors."""

    def listed(*mirrors, dataset="mnist"):
        sums = {name.removesuffix(".gz"): hashlib.md5(content).hexdigest() for name, content in packed.items()}
        monkeypatch.setitem(PUBLISHED, dataset, Published(PUBLISHED[dataset].folder, mirrors, sums))

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return listed


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist"])
def test_missing_files_are_downloaded_and_only_the_unpacked_ones_stay(tmp_path, packed, serve, publish, dataset):
    publish(serve(packed)[0], dataset=dataset)
    data = load(dataset, tmp_path / "data", CPU)
    assert (data.name, len(data.train), len(data.read_test())) == (dataset, 22, 6)
    assert names_in(tmp_path / "data", PUBLISHED[dataset].folder) == UNPACKED


@pytest.mark.parametrize("way", ["without a length", "strangely long", "moved"])
def test_a_mirror_may_send_no_length_and_redirect(tmp_path, packed, serve, publish, way):
    address, asked = serve(packed, way)
    publish(address)
    assert len(load("mnist", tmp_path / "data", CPU).train) == 22
    assert len(asked) == (8 if way == "moved" else 4)


# What the failure is called, where a server does not word it.
FAULTS = {
    "not found": "HTTP Error 404: Not Found",
    "another file": "damaged: MD5 ",
    "truncated": "bytes early, of ",
    "truncated without a length": "damaged: MD5 ",
    "stalled": "timed out",
    "endless": "more than 65,840 bytes",
    "always about to begin": "more than 65,840 bytes",
    "huge": "1,099,511,627,776 bytes announced, expected at most ",
    "more than it says": "damaged: MD5 ",
    "no server": "220 mail.example ESMTP",
    "rude": "HTTP Error 500: [31mNo!!!",
    "gone": None,
    "in a circle": "infinite loop",
    "a local file": "not allowed",
    "nowhere": None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mirror_that_fails_is_left_for_the_next_and_not_asked_again(
    tmp_path, packed, serve, publish, fault, monkeypatch
):
    if fault == "stalled":
        monkeypatch.setattr(download, "_IDLE", 0.3)
    monkeypatch.setitem(FILES, NAME.removesuffix(".gz"), 304)
    (bad, asked), (good, served) = serve(packed, fault), serve(packed)
    publish(bad, good)
    assert len(load("mnist", tmp_path / "data", CPU).train) == 22
    assert names_in(tmp_path / "data") == UNPACKED
    assert set(asked) == {NAME}
    assert set(served) == set(packed)


@pytest.mark.parametrize("fault", [fault for fault, reason in FAULTS.items() if reason])
def test_a_mirror_that_fails_is_told_with_the_reason_on_one_line(tmp_path, packed, serve, publish, fault, monkeypatch):
    if fault == "stalled":
        monkeypatch.setattr(download, "_IDLE", 0.3)
    monkeypatch.setitem(FILES, NAME.removesuffix(".gz"), 304)
    address = serve(packed, fault)[0]
    publish(address)
    with pytest.raises(InputError) as error:
        load("mnist", tmp_path / "data", CPU)
    said = str(error.value)
    assert said.isprintable()
    assert len(said) < 1000
    assert FAULTS[fault] in said.partition(address)[2]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("fault", ["dripping", "dripping headers"])
def test_a_mirror_that_drips_is_left_when_the_time_for_a_file_is_up(
    tmp_path, packed, serve, publish, fault, monkeypatch
):
    (bad, asked), (good, _) = serve(packed, fault), serve(packed)
    publish(bad)
    times = itertools.count(0, 100)  # each look at the clock, once a read, is 100 s after the one before
    monkeypatch.setattr(download, "_clock", lambda: next(times))
    with pytest.raises(InputError, match=r"not whole after 300 s, [\d,]+ bytes came"):
        load("mnist", tmp_path / "data", CPU)
    monkeypatch.setattr(download, "_clock", lambda: 0)
    monkeypatch.setattr(Mirror, "drip", lambda self, content: self.connection.shutdown(socket.SHUT_RDWR))
    publish(bad, good)
    assert len(load("mnist", tmp_path / "data", CPU).train) == 22
    assert set(asked) == {NAME}


def test_no_read_waits_longer_than_the_time_that_is_left(monkeypatch):
    times = iter((0.0, 1.0, 289.0, 295.0, 299.5, 300.0))
    monkeypatch.setattr(download, "_clock", lambda: next(times))
    budget = download._Budget(1)
    assert [budget.seconds() for _ in range(4)] == [10, 10, 5, 0.5]
    with pytest.raises(DownloadError, match="not whole after 300 s, 0 bytes came"):
        budget.seconds()


@pytest.fixture
def certificate(tmp_path):
    """Sign a certificate for 127.0.0.1 ourselves."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    path = tmp_path / "certificate.pem"
    asked = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost -addext"
    command = [*asked.split(), "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", path.with_suffix(".crt")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


def test_a_server_is_believed_by_its_certificate_alone(tmp_path, packed, serve, certificate, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    address = serve(packed, tls=context)[0].replace("http:", "https:")
    md5 = hashlib.md5(packed[NAME]).hexdigest()
    with pytest.raises(DownloadError, match="CERTIFICATE_VERIFY_FAILED"):
        download.download(address + NAME, tmp_path / "file", md5, 10**6)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    download.download(address + NAME, tmp_path / "file", md5, 10**6)
    assert (tmp_path / "file").read_bytes() == packed[NAME]


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/", "data:,x", "nonsense"])
def test_only_http_is_spoken(tmp_path, address):
    with pytest.raises((DownloadError, ValueError)):
        download.download(address, tmp_path / "file", "", 1000)


def test_a_disk_that_is_full_is_no_fault_of_the_mirror(tmp_path, packed, serve, publish):
    address, _ = serve(packed)
    publish(address)
    with pytest.raises(OSError, match="No space left"):
        download.download(address + NAME, type(tmp_path)("/dev/full"), "", 10**6)


def test_the_lists_are_torchvisions():
    datasets = pytest.importorskip("torchvision").datasets
    for published in PUBLISHED.values():
        theirs = getattr(datasets, published.folder)
        assert {f"{file}.gz": md5 for file, md5 in published.packed.items()} == dict(theirs.resources)
        assert [mirror for mirror in published.mirrors if mirror in theirs.mirrors] == theirs.mirrors
        assert published.packed.keys() == FILES.keys()


def test_a_mirror_that_is_down_is_left_for_the_next(tmp_path, packed, serve, publish, down):
    publish(down, serve(packed)[0])
    assert len(load("mnist", tmp_path / "data", CPU).train) == 22


def test_an_error_names_each_mirror_that_failed_and_why_and_leaves_nothing(tmp_path, packed, serve, publish, down):
    missing, damaged = serve({})[0], serve(packed, "truncated")[0]
    publish(down, missing, damaged)
    with pytest.raises(InputError) as error:
        load("mnist", tmp_path / "data", CPU)
    said = str(error.value)
    assert "\n" not in said
    for mirror, reason in ((down, "refused"), (missing, "404"), (damaged, "early")):
        assert reason in said.partition(mirror)[2].partition(")")[0]
    assert not (tmp_path / "data").exists()


def test_a_download_that_stops_half_way_keeps_the_whole_files_and_names_the_others(tmp_path, packed, serve, publish):
    first = {name: content for name, content in packed.items() if name.startswith("train")}
    publish(serve(first)[0])
    with pytest.raises(InputError) as error:
        load("auto", tmp_path / "data", CPU)
    assert names_in(tmp_path / "data") == [name for name in UNPACKED if name.startswith("train")]
    for name in UNPACKED:
        assert (name in str(error.value)) == name.startswith("t10k")


def test_ctrl_c_in_a_download_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(url, path, md5, most_bytes):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("mnist", tmp_path / "data", CPU)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("place", ["", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize("dataset", ["auto", "mnist"])
def test_a_file_or_a_dead_link_where_a_folder_should_be_is_told_in_one_line(tmp_path, place, dataset):
    for make in (lambda path: path.write_text("a file"), lambda path: path.symlink_to(tmp_path / "nowhere")):
        path = tmp_path / "data" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        with pytest.raises(
            InputError, match=r"expected --data-dir with a folder MNIST/raw, got .*, which is no folder"
        ) as error:
            load(dataset, tmp_path / "data", CPU)
        assert f"got {path}, which" in str(error.value)
        path.unlink()


def test_auto_without_files_and_network_says_in_one_line_that_it_takes_the_digits(tmp_path, no_network, capsys):
    data = load("auto", tmp_path / "none", CPU)
    said = capsys.readouterr().err
    assert data.name == "digits"
    assert said.count("\n") == 1
    assert "WARNING" in said
    assert "digits" in said
    assert str(tmp_path / "none") in said


def test_mnist_without_files_and_network_names_all_that_was_tried(tmp_path, no_network):
    with pytest.raises(InputError) as error:
        load("mnist", tmp_path / "none", CPU)
    for tried in (str(tmp_path / "none/MNIST/raw"), "train-images", "t10k-labels", "https://", "MANUAL_MLP_DATA"):
        assert tried in str(error.value)
    assert "\n" not in str(error.value)


def test_a_failed_download_leaves_no_folder_behind(tmp_path, no_network):
    load("auto", tmp_path / "none", CPU)
    assert list(tmp_path.iterdir()) == []
