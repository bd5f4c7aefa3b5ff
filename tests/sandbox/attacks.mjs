// What a hostile bot tries. Run twice: as a bot (Deno has to refuse), and with every permission of Deno (then the
// operating system's layers have to). Each attack returns something if it worked, and throws or returns nothing if not.
import childProcess from "node:child_process";
import dns from "node:dns/promises";
import fs from "node:fs";
import http from "node:http";
import net from "node:net";
import os from "node:os";

const connect = (options) =>
  new Promise((resolve, reject) => net.connect(options).once("connect", () => resolve("connected")).once("error", reject));
const run = (command, ...args) =>
  new Promise((resolve, reject) => childProcess.execFile(command, args, (error, out) => (error ? reject(error) : resolve(out || "ran"))));

export const attacks = {
  "read a file of the system": () => fs.readFileSync("/etc/passwd", "utf8"),
  "read a file of the system through Deno": () => Deno.readTextFileSync("/etc/passwd"),
  "read a file of the system asynchronously": () => Deno.readTextFile("/etc/passwd"),
  "read the server's own files": ({ settings }) => fs.readFileSync(settings, "utf8"),
  "read a secret": ({ secret }) => fs.readFileSync(secret, "utf8"),
  "open a secret": ({ secret }) => fs.openSync(secret, "r") + 1,
  "read a secret through a link": ({ secret }) => {
    fs.symlinkSync(secret, "/tmp/fhirbots-link");
    return fs.readFileSync("/tmp/fhirbots-link", "utf8");
  },
  "list the root folder": () => fs.readdirSync("/"),
  "list the home folder": ({ home }) => fs.readdirSync(home),
  "read its environment from /proc": () => fs.readFileSync("/proc/self/environ", "utf8") || "empty",
  "read the host's environment": () => fs.readFileSync(`/proc/${process.ppid}/environ`, "utf8") || "empty",
  "read the host's memory": () => fs.openSync(`/proc/${process.ppid}/mem`, "r") + 1,
  "write its own memory": () => fs.openSync("/proc/self/mem", "r+") + 1,
  "list descriptors of the host": () => fs.readdirSync(`/proc/${process.ppid}/fd`),
  "write to the temporary folder": () => fs.writeFileSync("/tmp/fhirbots-written", "x") ?? "written",
  "write to its Deno folder": () => fs.writeFileSync(`${Deno.env.get("DENO_DIR")}/written`, "x") ?? "written",
  "overwrite the runtime": ({ runtime }) => fs.appendFileSync(`${runtime}/main.mjs`, " ") ?? "written",
  "make a folder": () => fs.mkdirSync("/tmp/fhirbots-folder") ?? "made",
  "make a named pipe": () => run("/usr/bin/mkfifo", "/tmp/fhirbots-pipe"),
  "remove a file": ({ secret }) => fs.unlinkSync(secret) ?? "removed",
  "change a file's rights": ({ secret }) => fs.chmodSync(secret, 0o777) ?? "changed",
  "connect to a port": ({ port }) => connect({ host: "127.0.0.1", port }),
  "connect to a port through Deno": ({ port }) => Deno.connect({ hostname: "127.0.0.1", port }),
  "connect to a socket": ({ socket }) => connect({ path: socket }),
  "connect to a socket through Deno": ({ socket }) => Deno.connect({ transport: "unix", path: socket }),
  "ask over HTTP": ({ port }) =>
    new Promise((resolve, reject) => http.get({ host: "127.0.0.1", port }, () => resolve("answered")).once("error", reject)),
  "open a WebSocket": ({ port }) =>
    new Promise((resolve, reject) => Object.assign(new WebSocket(`ws://127.0.0.1:${port}`), { onopen: resolve, onerror: reject })),
  "listen on a port": () => Deno.listen({ hostname: "127.0.0.1", port: 0 }),
  "listen on a socket": () => Deno.listen({ transport: "unix", path: "/tmp/fhirbots-socket" }),
  "listen on an abstract socket": () => Deno.listen({ transport: "unix", path: "\0fhirbots" }),
  "serve through Deno": () => Deno.serve({ port: 0 }, () => new Response()).addr,
  "open a datagram socket": () => Deno.listenDatagram?.({ port: 0, transport: "udp" }) ?? Promise.reject(new Error("not there")),
  "resolve a name": () => dns.lookup("localhost.localdomain"),
  "resolve a name through Deno": () => Deno.resolveDns("example.com", "A", { nameServer: { ipAddr: "127.0.0.1" } }),
  "run a program": () => run("/bin/echo", "ran"),
  "run a program through Deno": () => new Deno.Command("/bin/echo").outputSync().success,
  "run a shell": () => childProcess.execSync("id").toString(),
  "run Deno again": () => new Deno.Command(Deno.execPath(), { args: ["--version"] }).outputSync().success,
  "fork": () => new Promise((resolve, reject) => childProcess.fork("x.js").once("spawn", () => resolve("forked")).once("error", reject)),
  "kill the host": () => Deno.kill(process.ppid, "SIGCONT") ?? "killed",
  "kill another process": ({ victim }) => Deno.kill(victim, "SIGKILL") ?? "killed",
  "kill all processes": () => Deno.kill(-1, "SIGCONT") ?? "killed",
  "become root": () => process.setuid?.(0) ?? Promise.reject(new Error("not there")),
  "raise its priority": () => os.setPriority(0, -20) ?? "raised",
  "import a file": async ({ secret }) => (await import(`file://${secret}`)) && "imported",
  "import a file as JSON": async ({ secret }) => (await import(`file://${secret}`, { with: { type: "json" } })).default,
  "import a file as text": async ({ secret }) => (await import(`file://${secret}`, { with: { type: "text" } })).default,
};

// Only with permissions there is a native interface, and with it every system call.
const NATIVE = {
  fork: [[], "i32"],
  vfork: [[], "i32"],
  getppid: [[], "i32"],
  socket: [["i32", "i32", "i32"], "i32"],
  socketpair: [["i32", "i32", "i32", "buffer"], "i32"],
  open: [["buffer", "i32"], "i32"],
  kill: [["i32", "i32"], "i32"],
  ptrace: [["i32", "i32", "pointer", "pointer"], "i32"],
  unshare: [["i32"], "i32"],
  mount: [["buffer", "buffer", "buffer", "u64", "pointer"], "i32"],
  chroot: [["buffer"], "i32"],
  setuid: [["u32"], "i32"],
  system: [["buffer"], "i32"],
  memfd_create: [["buffer", "u32"], "i32"],
  prctl: [["i32", "u64", "u64", "u64", "u64"], "i32"],
  syscall: [["i64", "i64", "i64", "i64", "i64"], "i64"],
};
const text = (string) => new TextEncoder().encode(`${string}\0`);
const worked = (value) => (Number(value) >= 0 ? `returned ${value}` : undefined);

export const nativeAttacks = {
  "open a file": (libc, { secret }) => worked(libc.open(text(secret), 0)),
  "fork": (libc) => worked(libc.fork()),
  "vfork": (libc) => worked(libc.vfork()),
  "run a shell": (libc) => (libc.system(text("true")) === 0 ? "ran" : undefined),
  "open an internet socket": (libc) => worked(libc.socket(2, 1, 0)),
  "open a datagram socket": (libc) => worked(libc.socket(2, 2, 0)),
  "open a version 6 socket": (libc) => worked(libc.socket(10, 1, 0)),
  "open a local socket": (libc) => worked(libc.socket(1, 1, 0)),
  "open a netlink socket": (libc) => worked(libc.socket(16, 3, 0)),
  "open a packet socket": (libc) => worked(libc.socket(17, 3, 0)),
  "open an alg socket": (libc) => worked(libc.socket(38, 5, 0)),
  "pair of internet sockets": (libc) => worked(libc.socketpair(2, 1, 0, new Uint8Array(8))),
  "signal the host": (libc) => worked(libc.kill(libc.getppid(), 0)),
  "signal everyone": (libc) => worked(libc.kill(-1, 18)),
  "debug the host": (libc) => worked(libc.ptrace(16, libc.getppid(), null, null)),
  "make a user namespace": (libc) => worked(libc.unshare(0x10000000)),
  "make a network namespace": (libc) => worked(libc.unshare(0x40000000)),
  "mount": (libc) => worked(libc.mount(text("none"), text("/tmp"), text("tmpfs"), 0n, null)),
  "chroot": (libc) => worked(libc.chroot(text("/tmp"))),
  "become root": (libc) => worked(libc.setuid(0)),
  "make a file in memory": (libc) => worked(libc.memfd_create(text("x"), 0)),
  "outlive the host": (libc) => worked(libc.prctl(1, 0n, 0n, 0n, 0n)),
  ...Object.fromEntries(
    Object.entries({
      "clone a process": [{ x86_64: 56, aarch64: 220 }, 17],
      "clone3 a process": [435, 0, 88],
      io_uring: [425, 8, 0],
      bpf: [{ x86_64: 321, aarch64: 280 }, 0, 0, 0],
      userfaultfd: [{ x86_64: 323, aarch64: 282 }, 0],
      perf_event_open: [{ x86_64: 298, aarch64: 241 }, 0, 0, 0, 0],
      keyctl: [{ x86_64: 250, aarch64: 219 }, 0, -3, 0],
      "pidfd of the host": [434, "ppid", 0],
      "limits of the host": [{ x86_64: 302, aarch64: 261 }, "ppid", 7, 0, 0],
      "a call that is not known yet": [480, 0],
      "shared memory": [{ x86_64: 29, aarch64: 194 }, 0, 4096, 0o1600],
      "execute a shell": [{ x86_64: 59, aarch64: 221 }, "shell", 0, 0],
    }).map(([name, [number, ...args]]) => [
      name,
      (libc) => {
        const call = typeof number === "object" ? number[Deno.build.arch] : number;
        const value = (item) =>
          item === "ppid" ? BigInt(libc.getppid())
          : item === "shell" ? BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(shell)))
          : BigInt(item);
        return worked(libc.syscall(BigInt(call), ...[...args, 0, 0, 0, 0].slice(0, 4).map(value)));
      },
    ]),
  ),
};
const shell = text("/bin/sh");

async function outcome(attack, ...args) {
  try {
    const limit = new Promise((_, reject) => setTimeout(reject, 2000, new Error("no answer")));
    const value = await Promise.race([attack(...args), limit]);
    return value === undefined || value === null ? "refused" : `WORKED: ${String(value).slice(0, 80)}`;
  } catch (error) {
    return `refused: ${error?.message ?? error?.type ?? error}`;
  }
}

export async function handler(_, { input }) {
  const outcomes = {};
  if (input.native) {
    const { symbols } = Deno.dlopen("libc.so.6", Object.fromEntries(
      Object.entries(NATIVE).map(([name, [parameters, result]]) => [name, { parameters, result }]),
    ));
    // A fork that works would go on here as a second process: it ends at its first word to the host.
    for (const [name, attack] of Object.entries(nativeAttacks)) outcomes[`native: ${name}`] = await outcome(attack, symbols, input);
  } else {
    for (const [name, attack] of Object.entries(attacks)) outcomes[name] = await outcome(attack, input);
    try {
      outcomes.environment = Deno.env.toObject();
    } catch (error) {
      outcomes.environment = error.message;
    }
  }
  return outcomes;
}
