import { BotEvent, createReference, getQuestionnaireAnswers, MedplumClient } from '@medplum/core';
import { Patient, QuestionnaireResponse } from '@medplum/fhirtypes';

/** Turns the answers of an intake form into resources. */
export async function handler(medplum: MedplumClient, event: BotEvent<QuestionnaireResponse>): Promise<Patient> {
  const answers = getQuestionnaireAnswers(event.input);
  const patient = await medplum.createResource<Patient>({
    resourceType: 'Patient',
    name: [{ given: [answers['first-name'].valueString as string], family: answers['last-name'].valueString }],
    birthDate: answers['birth-date']?.valueDate,
    telecom: answers.email?.valueString ? [{ system: 'email', value: answers.email.valueString }] : undefined,
  });
  if (answers.smoker?.valueBoolean) {
    await medplum.createResource({
      resourceType: 'Observation',
      status: 'final',
      subject: createReference(patient),
      code: { coding: [{ system: 'http://loinc.org', code: '72166-2', display: 'Tobacco smoking status' }] },
      valueCodeableConcept: { text: 'Smoker' },
    });
  }
  const allergy = answers.allergy?.valueCoding;
  if (allergy) {
    await medplum.createResource({
      resourceType: 'AllergyIntolerance',
      patient: createReference(patient),
      clinicalStatus: { coding: [{ system: 'http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical', code: 'active' }] },
      code: { coding: [allergy] },
    });
  }
  return patient;
}
