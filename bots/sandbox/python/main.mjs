// The process of a Python bot: Pyodide, started from the snapshot, with the pipe to the host as the device /dev/host.
// What it does with the frames on it is Python: sdk/fhirbots/sandbox.py.
import { exit, folder, read, readFile, revokeReading, sendConsoleTo, write } from "./host.mjs";
import { load } from "./load.mjs";

const python = await load({ _loadSnapshot: readFile(`${folder}snapshot.bin`) });
revokeReading();

const { FS } = python;
const bytes = (buffer, offset, length) => new Uint8Array(buffer.buffer, buffer.byteOffset + offset, length);
const device = FS.makedev(120, 0);
FS.registerDevice(device, {
  open: (stream) => void (stream.seekable = false),
  close() {},
  read: (_stream, buffer, offset, length) => read(bytes(buffer, offset, length)) ?? 0,
  write: (_stream, buffer, offset, length) => write(bytes(buffer, offset, length)),
});
FS.mkdev("/dev/host", device);
// What is not Python's own output (libraries in C, what is left of a crash) must not get into the pipe.
const nowhere = (buffer) => buffer.length;
python.setStdin({ read: () => 0 });
python.setStdout({ write: nowhere });
python.setStderr({ write: nowhere });

const sandbox = python.pyimport("fhirbots.sandbox");
sendConsoleTo(sandbox.note);
await sandbox.serve_in_loop("/dev/host");
exit(0);
