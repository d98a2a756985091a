/**
 * What the examples ask a running `flashforge serve`: JSON over HTTP.
 */
const url = process.argv[2] ?? 'http://127.0.0.1:8000';

export async function call(path, body, method = body === undefined ? 'GET' : 'POST') {
  const response = await fetch(url + path, {
    method,
    headers: {
      'content-type': 'application/json',
      ...(process.env.FLASHFORGE_API_KEY
        ? { authorization: `Bearer ${process.env.FLASHFORGE_API_KEY}` }
        : {}),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error.message);
  return answer;
}
