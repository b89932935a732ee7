import sharp from 'sharp'
import t from 'tap'
import { requireFileType } from '../src/files/file-types.ts'
import { detectFileType } from '../src/files/magic-numbers.ts'
import { Problem } from '../src/http/problems.ts'

/*
 * Types of files that people upload, with the media types that browsers give them, and types that are refused. Each sample is the
 * beginning of a file of its type.
 */

const latin1 = (text: string) => Buffer.from(text, 'latin1')
const padded = (start: string, length = 64) => Buffer.concat([latin1(start), Buffer.alloc(length)])

/** The beginning of a ZIP archive whose first entries have these names; their content is not compressed. */
function zip(...entries: [name: string, content: string][]): Buffer {
  return Buffer.concat(
    entries.map(([name, content]) => {
      const head = Buffer.alloc(30)
      head.writeUInt32LE(0x04034b50, 0)
      head.writeUInt16LE(20, 4)
      head.writeUInt32LE(content.length, 18)
      head.writeUInt32LE(content.length, 22)
      head.writeUInt16LE(name.length, 26)
      return Buffer.concat([head, latin1(name), latin1(content)])
    })
  )
}
const ftyp = (brand: string) => padded(`\0\0\0\x18ftyp${brand}\0\0\0\0mp42isom`)
const image = sharp({ create: { width: 8, height: 8, channels: 3, background: 'red' } })
const compound = padded('\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1', 512)
const program = padded('MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff\0\0', 200)
const docx = zip(['_rels/.rels', '<R/>'], ['word/document.xml', '<w/>'])
const xlsx = zip(['_rels/.rels', '<R/>'], ['xl/workbook.xml', '<x/>'])
const odt = zip(['mimetype', 'application/vnd.oasis.opendocument.text'], ['content.xml', '<o/>'])
const pdf = latin1('%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n')
const csv = 'Name;Betrag\r\nMüller;12,50\r\n'
const word = 'application/vnd.openxmlformats-officedocument.wordprocessingml.document'
const excel = 'application/vnd.openxmlformats-officedocument.spreadsheetml.sheet'
const octets = 'application/octet-stream'

type Sample = [name: string, declared: string, content: Buffer | string, type: string]

async function typeOf([name, declared, content]: [string, string, Buffer | string, ...unknown[]]): Promise<string> {
  try {
    return await requireFileType(Buffer.from(content).subarray(0, 4100), name, declared, detectFileType)
  } catch (err) {
    if (err instanceof Problem) return err.kind.code
    throw err
  }
}

t.test('what people send is taken for what it is', async (t) => {
  const samples: Sample[] = [
    ['a.pdf', 'application/pdf', pdf, 'application/pdf'],
    ['A.PDF', octets, pdf, 'application/pdf'],
    ['scan.pdf', 'application/pdf', Buffer.concat([latin1('\r\n'), pdf]), 'application/pdf'],
    ['no extension', octets, pdf, 'application/pdf'],
    ['invoice.exe.pdf', 'application/pdf', pdf, 'application/pdf'],
    ['a.png', 'image/png', await image.png().toBuffer(), 'image/png'],
    ['a.jpg', 'image/jpeg', await image.jpeg().toBuffer(), 'image/jpeg'],
    ['a.JPEG', 'image/pjpeg', await image.jpeg().toBuffer(), 'image/pjpeg'],
    ['a.webp', 'image/webp', await image.webp().toBuffer(), 'image/webp'],
    ['a.gif', 'image/gif', await image.gif().toBuffer(), 'image/gif'],
    ['a.tiff', 'image/tiff', await image.tiff().toBuffer(), 'image/tiff'],
    ['a.avif', 'image/avif', await image.avif().toBuffer(), 'image/avif'],
    ['IMG_1.HEIC', 'image/heic', ftyp('heic'), 'image/heic'],
    ['IMG_1.heic', 'image/heif', ftyp('mif1'), 'image/heif'],
    ['clip.mov', 'video/quicktime', ftyp('qt  '), 'video/quicktime'],
    ['clip.mp4', 'video/mp4', ftyp('isom'), 'video/mp4'],
    ['memo.m4a', 'audio/x-m4a', ftyp('M4A '), 'audio/x-m4a'],
    ['song.mp3', 'audio/mpeg', padded('ID3\x04\0\0\x7f\x7f\x7f\x7f', 4090), 'audio/mpeg'],
    ['art.psd', 'image/vnd.adobe.photoshop', padded('8BPS\0\x01'), 'image/vnd.adobe.photoshop'],
    ['art.psd', 'application/x-photoshop', padded('8BPS\0\x01'), 'application/x-photoshop'],
    ['logo.ai', 'application/postscript', pdf, 'application/pdf'],
    ['logo.ai', 'application/pdf', pdf, 'application/pdf'],
    ['logo.eps', 'application/postscript', '%!PS-Adobe-3.1 EPSF-3.0\n%%Title: x\n', 'application/postscript'],
    ['logo.svg', 'image/svg+xml', '<svg xmlns="http://www.w3.org/2000/svg"/>', 'image/svg+xml'],
    ['logo.svg', 'image/svg+xml', '<?xml version="1.0"?><svg/>', 'image/svg+xml'],
    ['logo.svg', 'image/svg+xml', '<!-- Generator: Illustrator --><svg/>', 'image/svg+xml'],
    ['a.docx', word, docx, word],
    ['a.docx', octets, docx, word],
    ['a.xlsx', excel, xlsx, excel],
    ['secret.xlsx', excel, compound, 'application/x-cfb'],
    ['a.odt', 'application/vnd.oasis.opendocument.text', odt, 'application/vnd.oasis.opendocument.text'],
    ['a.zip', 'application/x-zip-compressed', zip(['a.txt', 'x']), 'application/x-zip-compressed'],
    ['talk.key', 'application/vnd.apple.keynote', zip(['Index/Document.iwa', 'x']), 'application/vnd.apple.keynote'],
    ['a.doc', 'application/msword', compound, 'application/msword'],
    ['a.doc', 'application/msword', '{\\rtf1\\ansi}', 'application/rtf'],
    ['a.rtf', 'application/rtf', '{\\rtf1\\ansi}', 'application/rtf'],
    ['a.xls', 'application/vnd.ms-excel', compound, 'application/vnd.ms-excel'],
    ['export.xls', 'application/vnd.ms-excel', xlsx, excel],
    ['export.xls', 'application/vnd.ms-excel', '<html><table></table></html>', 'text/plain'],
    ['mail.msg', 'application/vnd.ms-outlook', compound, 'application/vnd.ms-outlook'],
    ['a.csv', 'text/csv', csv, 'text/csv'],
    ['a.csv', 'application/vnd.ms-excel', csv, 'text/csv'],
    ['a.csv', octets, csv, octets],
    ['utf16.csv', 'text/csv', Buffer.from(`\ufeff${csv}`, 'utf16le'), 'text/csv'],
    ['latin1.csv', 'text/csv', latin1(csv), 'text/csv'],
    ['README.md', 'text/markdown', '# Hello', 'text/markdown'],
    ['a.json', 'application/json', '{"a":1}', 'application/json'],
    ['a.txt', 'text/plain', 'hello', 'text/plain'],
    ['cars.txt', 'text/plain', 'BMW und Mini', 'text/plain'],
    ['report.txt', 'text/plain', 'MZ-Bericht', 'text/plain'],
    ['page.html', 'text/html', '<!doctype html><script>alert(1)</script>', 'text/html'],
    ['date.ics', 'text/calendar', 'BEGIN:VCALENDAR\r\nVERSION:2.0', 'text/calendar'],
    ['ada.vcf', 'text/x-vcard', 'BEGIN:VCARD\r\nVERSION:3.0', 'text/x-vcard'],
    ['mail.eml', 'message/rfc822', 'From: ada@example.com\r\n', octets],
    ['empty.pdf', 'application/pdf', '', 'application/pdf'],
    ['backup.dat', octets, 'whatever', octets],
    ['unknown.xyz', 'application/x-own', padded('\x01\x02\x03'), 'application/x-own'],
    ['odd', 'text/html\r\nx: y', 'hello', octets],
    ['odd', '', 'hello', octets]
  ]
  for (const sample of samples) {
    t.equal(await typeOf(sample), sample[3], `${sample[0]} as ${JSON.stringify(sample[1])}: ${sample[2].length} bytes`)
  }
})

t.test('what pretends to be another kind is refused', async (t) => {
  const png = await image.png().toBuffer()
  const samples: [string, string, Buffer | string][] = [
    ['a.pdf', 'image/png', pdf],
    ['a.png', 'application/pdf', pdf],
    ['a.png', 'image/png', '<html><script>alert(1)</script></html>'],
    ['a.pdf', 'application/pdf', 'hello'],
    ['a.pdf', 'application/pdf', docx],
    ['a.docx', word, 'hello'],
    ['a.docx', word, png],
    ['a.jpg', 'image/jpeg', png],
    ['photo', 'image/jpeg', padded('\x01\x02\x03')],
    ['a.txt', 'text/plain', png],
    ['a.csv', 'text/csv', compound],
    ['a.csv', 'image/png', csv],
    ['a.svg', 'image/svg+xml', png],
    ['a.html', 'text/html', pdf.subarray(0, 4).toString() + png.toString('latin1')],
    ['a.xls', 'application/vnd.ms-excel', png]
  ]
  for (const sample of samples) {
    t.equal(await typeOf(sample), 'unsupported_media_type', `${sample[0]} as ${sample[1]}: ${sample[2].length} bytes`)
  }
})

t.test('programs and scripts are refused, however they are called', async (t) => {
  const elf = padded('\x7fELF\x02\x01\x01\0', 200)
  const samples: [string, string, Buffer | string][] = [
    ['setup.exe', 'application/x-msdownload', program],
    ['setup', octets, program],
    ['holiday.jpg', 'image/jpeg', program],
    ['holiday.jpg.exe', 'image/jpeg', await image.jpeg().toBuffer()],
    ['SETUP.EXE', octets, 'x'],
    ['setup.exe.', octets, 'x'],
    ['setup.exe\u200b', octets, 'x'],
    ['setup.exe::$', octets, 'x'],
    ['tool', octets, elf],
    ['run.sh', 'text/x-sh', 'echo'],
    ['notes.txt', 'text/plain', '#!/bin/sh\nrm -rf ~'],
    ['macro.vbs', 'text/vbscript', 'x'],
    ['page.hta', 'text/html', '<html></html>'],
    ['app.jar', 'application/java-archive', zip(['META-INF/MANIFEST.MF', 'x'])],
    ['app.zip', 'application/zip', zip(['META-INF/MANIFEST.MF', 'x'])],
    ['link.lnk', octets, padded('L\0\0\0\x01\x14\x02\0')]
  ]
  for (const sample of samples) {
    t.equal(await typeOf(sample), 'unsupported_media_type', `${JSON.stringify(sample[0])}: ${sample[2].length} bytes`)
  }
})

t.test('what opens as a program, or as a folder of them, is refused by its name', async (t) => {
  const names = 'iso vhd xll library-ms settingcontent-ms appref-ms wsc ps1xml one desktop command'.split(' ')
  for (const extension of [...names, 'vhdx', 'search-ms', 'sct', 'LIBRARY-MS', 'one.', 'iso ']) {
    const refused = requireFileType(latin1('some text'), `report.pdf.${extension}`, undefined, detectFileType)
    await t.rejects(refused, { message: 'programs and scripts are not accepted' }, extension)
  }
  t.equal(await requireFileType(latin1('some text'), 'report.my-notes', 'text/plain', detectFileType), 'text/plain')
})
