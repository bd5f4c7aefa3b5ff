// Makes snapshot.bin at set-up: the memory of a Python that has imported what bots need most.
import { folder, writeFile } from "./host.mjs";
import { load, PACKAGES } from "./load.mjs";

const python = await load({ _makeSnapshot: true });
python.runPython(`
import sys
sys.path.append("${PACKAGES}")
import asyncio, base64, collections, contextlib, csv, dataclasses, datetime, decimal, email.utils, enum, functools, hashlib, hmac
import html, io, itertools, json, linecache, logging, math, operator, pathlib, random, re, secrets, statistics, string, textwrap
import time, traceback, typing, unicodedata, urllib.parse, uuid, warnings, xml.etree.ElementTree, zoneinfo
import hl7
import fhirbots.sandbox, fhirbots.wheel_data, fhirbots.wheels
# What a first call would have to make: code of JSON and exceptions, the event loop's tasks.
from fhirbots.handler import answer_of, load_handler, stack_of
answer_of({"a": [1, 1.5, True, None, "é"]})
fhirbots.sandbox.parse_hl7("MSH|^~\\\\&|A|B|C|D|20240101||ADT^A01|1|P|2.5\\rPID|1")
try:
    load_handler("async def handler(medplum, event):\\n    return 1\\n", "index.py")
    {}["warm"]
except KeyError as error:
    stack_of(error)
linecache.clearcache()
sys.modules.pop("bot", None)
import gc
gc.collect()
`);
writeFile(`${folder}snapshot.bin`, python.makeMemorySnapshot());
