"use strict";
// as tsc writes it
var __importDefault = (this && this.__importDefault) || function (mod) {
    return (mod && mod.__esModule) ? mod : { "default": mod };
};
Object.defineProperty(exports, "__esModule", { value: true });
exports.handler = handler;
const core_1 = require("@medplum/core");
const node_util_1 = require("node:util");
const jszip_1 = __importDefault(require("jszip"));
async function handler(medplum, event) {
    const patient = event.input;
    const others = await medplum.searchResources('Patient', {
        'family:exact': patient.name[0].family,
        birthdate: patient.birthDate,
        _id: `${patient.id}`.length ? undefined : '',
    });
    const found = others.filter((other) => other.id !== patient.id && !(0, core_1.deepEquals)(other, patient));
    console.log((0, node_util_1.format)('%d of %d', found.length, others.length), typeof jszip_1.default);
    for (const other of found) {
        await medplum.createResource({
            resourceType: 'Task', status: 'requested', intent: 'proposal',
            description: 'Are these the same person?',
            focus: (0, core_1.createReference)(patient), for: (0, core_1.createReference)(other),
        });
    }
    return found.map(core_1.getReferenceString);
}
