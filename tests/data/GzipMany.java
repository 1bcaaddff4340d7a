// The gzip of many beginnings of one text, by java.util.zip.GZIPOutputStream, as jib calls it.
//
//     java GzipMany SIZE... < text     for each size: u32 length, little endian, and the blob
import java.io.ByteArrayOutputStream;
import java.util.zip.GZIPOutputStream;

public class GzipMany {
    public static void main(String[] sizes) throws Exception {
        byte[] text = System.in.readAllBytes();
        for (String size : sizes) {
            var blob = new ByteArrayOutputStream();
            try (var encoder = new GZIPOutputStream(blob)) {
                encoder.write(text, 0, Integer.parseInt(size));
            }
            int length = blob.size();
            for (int bit = 0; bit < 32; bit += 8) System.out.write(length >>> bit);
            System.out.write(blob.toByteArray(), 0, length);
        }
        System.out.flush();
    }
}
