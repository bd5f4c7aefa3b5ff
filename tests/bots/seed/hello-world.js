export async function handler(medplum, event) {
  console.log('Hello world');
}
