import { BotEvent, MedplumClient } from '@medplum/core';
import Client from 'ssh2-sftp-client';

export async function handler(_medplum: MedplumClient, event: BotEvent): Promise<string[]> {
  const sftp = new Client();
  await sftp.connect({ host: event.secrets['SFTP_HOST'].valueString });
  return (await sftp.list('/out')).map((file) => file.name);
}
